"""Transformers: their forward is written by hand, so it is compared with theirs."""

import copy

import pytest
import torch

from layerwise import InputError, cut

transformers = pytest.importorskip("transformers")

SIZE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
TOKENS = {"vocab_size": 50, "pad_token_id": 0, "max_position_embeddings": 40}
EAGER = {"attn_implementation": "eager"}


def bert(kind, **kwargs):
    return getattr(transformers, kind)(transformers.BertConfig(**SIZE, **TOKENS, **kwargs))


def gpt2(kind, **kwargs):
    config = transformers.GPT2Config(
        n_embd=16,
        n_layer=3,
        n_head=2,
        n_positions=40,
        vocab_size=50,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
        **kwargs,
    )
    return getattr(transformers, kind)(config)


def llama(kind, **kwargs):
    return getattr(transformers, kind)(transformers.LlamaConfig(**SIZE, **TOKENS, **kwargs))


def vit(**kwargs):
    config = transformers.ViTConfig(**SIZE, image_size=16, patch_size=8, **kwargs)
    return transformers.ViTForImageClassification(config)


TEXT = {
    "BertModel": (lambda: bert("BertModel"), 3),
    "BertForSequenceClassification": (lambda: bert("BertForSequenceClassification"), 5),
    "BertForSequenceClassification, eager": (
        lambda: bert("BertForSequenceClassification", **EAGER),
        5,
    ),
    "GPT2Model": (lambda: gpt2("GPT2Model"), 3),
    "GPT2LMHeadModel": (lambda: gpt2("GPT2LMHeadModel", tie_word_embeddings=False), 4),
    "GPT2LMHeadModel, eager": (
        lambda: gpt2("GPT2LMHeadModel", tie_word_embeddings=False, **EAGER),
        4,
    ),
    "GPT2ForSequenceClassification": (lambda: gpt2("GPT2ForSequenceClassification"), 4),
    "LlamaModel": (lambda: llama("LlamaModel"), 3),
    "LlamaForCausalLM": (lambda: llama("LlamaForCausalLM"), 4),
    "LlamaForCausalLM, eager": (lambda: llama("LlamaForCausalLM", **EAGER), 4),
    "LlamaForSequenceClassification": (lambda: llama("LlamaForSequenceClassification"), 4),
}


def theirs(model, x):
    # A cache makes the keys contiguous, with which eager attention rounds differently.
    causal = not type(model).__name__.startswith("Bert")
    output = model(x, use_cache=False) if causal else model(x)
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


@pytest.mark.parametrize("name", TEXT)
def test_text(name):
    build, pieces = TEXT[name]
    model, tokens = build().eval(), torch.randint(1, 50, (3, 9))
    chains = [cut(model, 2, example=tokens), cut(model, "all", example=tokens)]
    assert len(chains[1]) == pieces
    assert sorted(dict(model.named_children())) == sorted(dict(build().named_children()))
    with torch.no_grad():
        for chain in chains:
            for x in (tokens, tokens[:1], tokens[:, :4], tokens.repeat(1, 3)):
                assert torch.equal(chain(x), theirs(model, x))


def test_images():
    model, x = vit().eval(), torch.randn(3, 3, 16, 16)
    for blocks in (2, "all"):
        chain = cut(model, blocks, example=x)
        with torch.no_grad():
            assert torch.equal(chain(x), model(x).logits)
            assert torch.equal(chain(x[:1]), model(x[:1]).logits)
    names = ("vit.embeddings", "vit.layers.0", "vit.layers.1", "vit.layers.2", "classifier")
    assert chain.names == names


def test_at_names_and_gradients():
    model = gpt2(
        "GPT2LMHeadModel",
        tie_word_embeddings=False,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    tokens = torch.randint(1, 50, (2, 6))
    chain = cut(model, at=["transformer.h", "transformer.h.2", "lm_head"], example=tokens)
    assert chain.names == ("transformer.wte", "transformer.h.0", "transformer.h.2", "lm_head")
    assert {k.split(".", 1)[1] for k in chain.state_dict()} == set(model.state_dict())
    chain.train()(tokens).square().mean().backward()
    twin = copy.deepcopy(chain).eval()
    assert torch.equal(twin(tokens), chain.eval()(tokens))
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(tokens).logits.square().mean().backward()
    for a, p in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad)


def test_one_block():
    tokens = torch.randint(1, 50, (2, 6))
    model = gpt2("GPT2LMHeadModel").eval()  # tied: fine within one block
    assert torch.equal(cut(model, 1, example=tokens)(tokens), model(tokens).logits)


def test_tied_embeddings():
    tokens = torch.randint(1, 50, (2, 6))
    match = r"'transformer.wte.weight' is: untie it, tie_word_embeddings=False"
    for blocks in (2, "all"):
        with pytest.raises(InputError, match=match):
            cut(gpt2("GPT2LMHeadModel"), blocks, example=tokens)


def test_unknown_architecture():
    config = transformers.T5Config(
        d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=50
    )
    model = transformers.T5EncoderModel(config)
    with pytest.raises(InputError, match="T5EncoderModel"):
        cut(model, 2, example=torch.randint(1, 50, (2, 6)))
