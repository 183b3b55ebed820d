"""Text with early exits: the naive loop, and the full network's text from drafts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layerwise import cut, models, rules
from layerwise.analysis.exits import EarlyExit, Exit, generate
from layerwise.analysis.exits.generation import window_start
from layerwise.errors import InputError

CONTEXT, TOKENS = 12, 7


@pytest.fixture(scope="module")
def rule():
    """After some steps on a text that repeats with noise, so that exits agree sometimes."""
    torch.manual_seed(0)
    network = models.gpt((CONTEXT,), TOKENS, layers=3, width=16)
    x = torch.zeros(2, CONTEXT, dtype=torch.long)
    rule = rules.DGL(cut(network, "all", example=x))
    optimizer = torch.optim.Adam(rule.parameters(), 0.01)
    for _ in range(40):
        text = (torch.randint(TOKENS, (16, 1)) + torch.arange(CONTEXT + 1)) % TOKENS
        text = torch.where(torch.rand(text.shape) < 0.2, torch.randint(TOKENS, text.shape), text)
        optimizer.zero_grad()
        rule.backward(text[:, :-1], text[:, 1:])
        optimizer.step()
    return rule.eval()


def naive(model, prompt, count):
    tokens = prompt.tolist()
    for _ in range(count):
        window = torch.tensor(tokens[window_start(len(tokens), CONTEXT) :])
        tokens.append(int(model(window[None])[0, -1].argmax()))
    return tokens


def test_windows():
    """The window of 12 tokens loses 6 when it is full."""
    lengths = range(1, 26)
    starts = [window_start(n, 12) for n in lengths]
    assert starts == [0] * 12 + [6] * 6 + [12] * 6 + [18]
    assert all(1 <= n - s <= 12 for n, s in zip(lengths, starts, strict=True))
    assert [window_start(n, 1) for n in (1, 2, 3)] == [0, 1, 2]


PROMPTS = [torch.tensor([3]), torch.tensor([0, 1, 2, 5, 5]), torch.arange(30) % TOKENS]


@pytest.mark.parametrize("prompt", PROMPTS)
@torch.no_grad()
def test_verified_text_is_the_full_networks(rule, prompt):
    plain = generate(rule, prompt, 40, CONTEXT)
    assert plain.tokens.tolist() == naive(rule, prompt, 40)
    assert (plain.forwards, plain.drafted) == (40, 0)
    drafts = {"first": Exit(rule, 0), "second": Exit(rule, 1), "itself": rule}
    for draft in drafts.values():
        for ahead in (1, 3, 20):
            found = generate(rule, prompt, 40, CONTEXT, draft=draft, ahead=ahead)
            assert torch.equal(found.tokens, plain.tokens)
            assert found.accepted + found.forwards == 40
            assert found.accepted <= found.drafted
            if draft is rule:
                assert found.accepted == found.drafted
    assert generate(rule, prompt, 40, CONTEXT, draft=rule).forwards < 20


@torch.no_grad()
def test_tokens_leave_where_they_are_sure(rule):
    prompt = PROMPTS[1]
    exits = [generate(Exit(rule, k), prompt, 30, CONTEXT).tokens for k in range(len(rule.blocks))]
    for threshold, wanted in ((0.0, exits[0]), (1.1, exits[-1])):
        early = EarlyExit(rule, threshold, position=-1)
        assert torch.equal(generate(early, prompt, 30, CONTEXT).tokens, wanted)

    def decide(window):  # all exits, of which one is chosen
        scores = rule.exits(window)
        sure = [z[0, -1].softmax(0).max() >= 0.5 for z in scores[:-1]]
        taken.append(sure.index(True) if True in sure else len(scores) - 1)
        return scores[taken[-1]]

    taken: list[int] = []
    early = EarlyExit(rule, 0.5, position=-1)
    assert generate(early, prompt, 30, CONTEXT).tokens.tolist() == naive(decide, prompt, 30)
    assert len(set(taken)) > 1


@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
@torch.no_grad()
def test_models_of_hugging_face(kind):
    """The verified text is the full model's, which may be given instead of the rule. Samples that
    are padded leave by themselves, with their own mask."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind == "Llama":
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3}
        config = transformers.LlamaConfig(vocab_size=TOKENS, num_attention_heads=2, **sizes)
        model = transformers.LlamaForCausalLM(config).eval()
    else:
        config = transformers.GPT2Config(vocab_size=TOKENS, n_embd=16, n_layer=3, n_head=2)
        model = transformers.GPT2LMHeadModel(config).eval()
    ids, mask = torch.randint(TOKENS, (9, 9)), torch.ones(9, 9, dtype=torch.long)
    mask[1, :3] = mask[4, 2:] = mask[6, :5] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    rule = rules.DGL(cut(model, 3, example=inputs)).eval()

    wanted = naive(lambda window: model(window).logits, ids[0], 12)
    for written in (model, rule):
        for draft in (None, Exit(rule, 0), rule, model):
            found = generate(written, ids[0], 12, CONTEXT, draft=draft)
            assert found.tokens.tolist() == wanted

    exits = rule.exits(inputs)
    torch.testing.assert_close(exits[-1], model(**inputs).logits)
    p = torch.stack([z[:, -1].softmax(-1).amax(-1) for z in exits])
    for threshold in p[:-1].flatten().quantile(torch.tensor([0.3, 0.6])).tolist():
        scores, taken = EarlyExit(rule, threshold, position=-1).decide(**inputs)
        sure = p >= threshold
        sure[-1] = True
        assert taken.tolist() == sure.int().argmax(0).tolist()
        rows = torch.stack([exits[k][row] for row, k in enumerate(taken.tolist())])
        torch.testing.assert_close(scores, rows)


def test_what_is_no_text(rule):
    for call, says in (
        (lambda: generate(rule, torch.zeros(1, 3).long(), 3, CONTEXT), r"got \(1, 3\)"),
        (lambda: generate(rule, torch.zeros(3), 3, CONTEXT), "of torch.float32"),
        (lambda: generate(rule, torch.zeros(0).long(), 3, CONTEXT), "at least one"),
        (lambda: generate(rule, PROMPTS[0], -1, CONTEXT), "give at least 0"),
        (lambda: generate(rule, PROMPTS[0], 3, CONTEXT, draft=rule, ahead=0), "give at least 1"),
        (lambda: generate(rule, PROMPTS[2], 3, 20), "a window of 20 tokens, but its context is 12"),
        (lambda: generate(rule, PROMPTS[0], 2.5, CONTEXT), "count=2.5.: give a whole number"),
        (lambda: generate(lambda x: "text", PROMPTS[0], 3, CONTEXT), "model gave str; give a rule"),
        (lambda: generate(lambda x: x, PROMPTS[0], 3, CONTEXT), r"gave scores \(1, 1\)"),
    ):
        with pytest.raises(InputError, match=says) as e:
            call()
        assert "\n" not in str(e.value)


def test_a_prompt_is_a_tensor():
    with pytest.raises(InputError, match=r"generate\(prompt='abc'\): give the numbers"):
        generate(nn.Identity(), "abc", 3, 16)
