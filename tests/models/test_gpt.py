"""The causal transformer: its size, and that nothing comes from later tokens."""

from __future__ import annotations

import pytest
import torch

from layerwise import Blocks, InputError, cut, heads, models, objectives, rules

TOKENS, CONTEXT = 7, 6


def small(**options: int) -> torch.nn.Sequential:
    return models.gpt((CONTEXT,), TOKENS, **{"layers": 2, "width": 8, "heads": 2, **options})


def test_size() -> None:
    """D = 64: attention 4 D^2 + 4 D, MLP 8 D^2 + 5 D, two norms 4 D: 12 D^2 + 13 D a layer."""
    d, vocabulary, context = 64, 13, 32
    ends = vocabulary * d + context * d + 2 * d + (d + 1) * vocabulary
    network = models.gpt((context,), vocabulary)
    assert sum(p.numel() for p in network.parameters()) == 2 * (12 * d * d + 13 * d) + ends
    assert [name for name, _ in network.named_children()] == [
        "embedding",
        "layer1",
        "layer2",
        "classifier",
    ]


@pytest.mark.parametrize("t", range(CONTEXT))
def test_no_token_is_seen_before_its_place(t: int) -> None:
    network = small().eval()
    x = torch.randint(TOKENS, (3, CONTEXT))
    other = x.clone()
    other[:, t] = (other[:, t] + 1) % TOKENS
    before, after = network(x), network(other)
    assert torch.equal(before[:, :t], after[:, :t])
    assert not torch.isclose(before[:, t:], after[:, t:]).all(-1).any()  # and all from there on are


def test_attention_by_definition() -> None:
    """softmax over q k / sqrt(E) of the positions up to one's own, head by head."""
    layer = small().double().layer1.attention
    h = torch.randn(2, CONTEXT, 8, dtype=torch.float64)
    q, k, v = layer.read(h).split(8, dim=-1)
    wanted = torch.zeros_like(h)
    for head in (slice(0, 4), slice(4, 8)):
        for b in range(2):
            for t in range(CONTEXT):
                scores = k[b, : t + 1, head] @ q[b, t, head] / 4**0.5
                wanted[b, t, head] = scores.softmax(0) @ v[b, : t + 1, head]
    torch.testing.assert_close(layer(h), layer.write(wanted))


@pytest.mark.parametrize("norm_first", [False, True])
def test_a_layer_is_pytorchs(norm_first: bool) -> None:
    layer = small(norm_first=norm_first).double().layer1
    theirs = torch.nn.TransformerEncoderLayer(
        8, 2, 32, 0.0, "gelu", batch_first=True, norm_first=norm_first, dtype=torch.float64
    )
    names = {
        "self_attn.in_proj_": "attention.read.",
        "self_attn.out_proj.": "attention.write.",
        "linear1.": "mlp.0.",
        "linear2.": "mlp.2.",
    }
    state = layer.state_dict()
    for key in theirs.state_dict():
        mine = key
        for its, ours in names.items():
            mine = mine.replace(its, ours)
        theirs.state_dict()[key].copy_(state[mine])
    h = torch.randn(3, CONTEXT, 8, dtype=torch.float64)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(CONTEXT, dtype=torch.float64)
    torch.testing.assert_close(layer(h), theirs(h, src_mask=mask, is_causal=True))


def test_shorter_windows() -> None:
    network = small().eval()
    x = torch.randint(TOKENS, (2, CONTEXT))
    torch.testing.assert_close(network(x[:, :4]), network(x)[:, :4])


def test_dropout_is_for_training() -> None:
    network = models.gpt((CONTEXT,), TOKENS, width=8, heads=2, dropout=0.5)
    x = torch.randint(TOKENS, (2, CONTEXT))
    assert not torch.equal(network(x), network(x))
    assert torch.equal(network.eval()(x), network(x))


@pytest.mark.parametrize("layers", ["all", ["layer2", "classifier"]])
def test_it_can_be_cut(layers: str | list[str]) -> None:
    network = small()
    x = torch.randint(TOKENS, (3, CONTEXT))
    blocks = cut(network, example=x, **({"blocks": layers} if layers == "all" else {"at": layers}))
    assert blocks.input_dtype == torch.long
    assert blocks.shapes[-1] == (CONTEXT, TOKENS)
    assert torch.equal(blocks.eval()(x), network.eval()(x))


# What is asked for objectives beside the blocks, and what takes no label for every token.
OBJECTIVES = ("Greedy", "HPFF", "LocalForwardGradient", "Overlap", "Sequential")
ONE_LABEL = ("DiffusionBlocks", "ForwardForward", "NoProp", "PEPITA")


@pytest.mark.parametrize("rule", ONE_LABEL)
def test_rules_that_take_one_label_a_sample(rule: str) -> None:
    blocks = Blocks(small(), example=torch.zeros(2, CONTEXT, dtype=torch.long))
    with pytest.raises(InputError, match=f"^{rule}.*take "):
        getattr(rules, rule)(blocks)


@pytest.mark.parametrize("rule", sorted({*rules.__all__} - {*ONE_LABEL}))
def test_every_rule_trains_it(rule: str) -> None:
    blocks = Blocks(small(), example=torch.zeros(2, CONTEXT, dtype=torch.long))
    local = [objectives.Classify(heads.Linear())] if rule in OBJECTIVES else []
    options = {"delay": 0} if rule == "DelayedGradient" else {}
    made = getattr(rules, rule)(blocks, *local, **options)
    x = torch.randint(TOKENS, (3, CONTEXT))
    report = made.backward(x, x.roll(-1, 1))
    assert report.logits.shape == (3, CONTEXT, TOKENS)
    trained = [block for block in blocks if any(p.grad is not None for p in block.parameters())]
    assert len(trained) == (1 if rule in ("LastBlock", "Sequential") else 4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shape": (3, 32, 32)}, r"gpt\(shape=\(3, 32, 32\)\): it takes windows of tokens"),
        ({"heads": 3}, "a width that the heads divide"),
        ({"layers": -1}, "layers=-1"),
    ],
)
def test_bad_sizes(options: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        models.gpt(**options)
