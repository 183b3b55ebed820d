"""The forward of Hugging Face transformers, written by hand.

Theirs takes and returns more than a tensor and cannot be traced. Here it is for one input,
`input_ids` (B, T) or `pixel_values` (B, C, H, W), without padding: embeddings, layers, head. What
every layer is given besides the hidden state (positions, a causal mask, rotary embeddings) is
computed once per block from the shape of its input, so any batch and any length goes through.

Known are the architectures that are built like BERT, GPT-2, Llama or ViT. The chain is compared
with the model, so one that is built alike but computes something else is refused. The output is
the logits, or the last hidden state where there is no head; a pooler whose output that does not
need is left out. Sequence classifiers that read the last token read position -1.

The output is bit for bit the model's with `use_cache=False`; with a cache, which it has by default,
its eager attention may round differently.

`transformers` is never imported unless the model came from it.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, fx, nn

from layerwise.blocks.flow import SHAPE_ONLY


def is_huggingface(model: nn.Module) -> bool:
    return any(
        c.__module__.startswith("transformers.") and c.__name__ == "PreTrainedModel"
        for c in type(model).__mro__
    )


def output_of(output: Any) -> Any:
    """The tensor in a transformer's output that a chain returns."""
    logits = getattr(output, "logits", None)
    return logits if logits is not None else getattr(output, "last_hidden_state", output)


def write(model: Any) -> fx.Graph | None:
    """The graph of `model`, or None where its architecture is not known.

    The mask of a causal model becomes a submodule of `model`.
    """
    name = model.base_model_prefix
    base, prefix = (getattr(model, name), f"{name}.") if hasattr(model, name) else (model, "")
    script = _Script(model, prefix)
    hidden = (_encoder if script.find("embeddings") else _decoder)(script, base)
    output = hidden and (_head(script, model, base, hidden) if prefix else hidden)
    if output is None:
        return None
    script.graph.output(output)
    return script.graph


def positions(h: Tensor) -> Tensor:
    """0 ... T-1 for a hidden state (B, T, ...), (1, T)."""
    return torch.arange(h.shape[1], device=h.device).unsqueeze(0)


def hidden_state(output: Any) -> Tensor:
    """Of what a layer returns: before transformers 5, a tuple that it comes first in."""
    return output[0] if isinstance(output, tuple) else output


class CausalMask(nn.Module):
    """The mask that a causal transformer gives its layers; None where attention knows by itself."""

    def __init__(self, config: Any):
        super().__init__()
        self.config = config

    def forward(self, h: Tensor, position_ids: Tensor) -> Tensor | None:
        from transformers.masking_utils import create_causal_mask

        given: dict[str, Any] = {
            "config": self.config,
            "inputs_embeds": h,
            "input_embeds": h,
            "attention_mask": None,
            "past_key_values": None,
            "cache": None,
            "position_ids": position_ids,
            "cache_position": position_ids[0],
        }
        # The arguments' names changed between versions.
        known = inspect.signature(create_causal_mask).parameters
        mask: Any = create_causal_mask(**{name: given[name] for name in known if name in given})
        return mask


class _Script:
    """Writes a graph whose nodes know where in the model they are, as those of a trace do."""

    def __init__(self, model: nn.Module, prefix: str):
        self.model, self.prefix = model, prefix
        self.graph = fx.Graph()
        self.x = self._mark(self.graph.placeholder("x"))

    def find(self, *names: str) -> str | None:
        """The path of the first of the base model's modules in `names` that there is."""
        for name in names:
            path = self.prefix + name
            if any(path == known for known, _ in self.model.named_modules()):
                return path
        return None

    def layers(self, *names: str) -> list[str]:
        path = self.find(*names)
        return [f"{path}.{i}" for i in range(len(self.model.get_submodule(path)))] if path else []  # type: ignore[arg-type]

    def module(self, path: str, *args: Any, shape_only: bool = False, **kwargs: Any) -> fx.Node:
        node = self._mark(self.graph.call_module(path, args, kwargs), path)
        if shape_only:
            node.meta[SHAPE_ONLY] = True
        return node

    def function(self, target: Any, *args: Any, shape_only: bool = False) -> fx.Node:
        node = self._mark(self.graph.call_function(target, args))
        if shape_only:
            node.meta[SHAPE_ONLY] = True
        return node

    def _mark(self, node: fx.Node, *path: str) -> fx.Node:
        node.meta["calls"] = tuple((p, 0) for p in path)
        node.meta["key"] = node.name
        return node


def _encoder(script: _Script, base: Any) -> fx.Node | None:
    """BERT and ViT: every position sees every other."""
    layers = script.layers("encoder.layer", "layers")
    if not layers or getattr(base.config, "is_decoder", False):
        return None
    h = script.module(f"{script.prefix}embeddings", script.x)
    for layer in layers:
        h = script.function(hidden_state, script.module(layer, h))
    norm = script.find("layernorm")
    return script.module(norm, h) if norm else h


def _decoder(script: _Script, base: Any) -> fx.Node | None:
    """GPT-2 and Llama: a position sees those before it."""
    embedding, layers = script.find("wte", "embed_tokens"), script.layers("h", "layers")
    norm, rotary = script.find("ln_f", "norm"), script.find("rotary_emb")
    absolute, dropout = script.find("wpe"), script.find("drop")
    sliding = getattr(base.config, "sliding_window", None)
    if not (embedding and layers and norm and (rotary or absolute)) or sliding is not None:
        return None
    script.model.add_module("causal_mask", CausalMask(base.config))

    h = script.module(embedding, script.x)
    at = script.function(positions, h, shape_only=True)
    mask = script.module("causal_mask", h, at, shape_only=True)
    given: dict[str, Any] = {"attention_mask": mask, "position_ids": at, "use_cache": False}
    if rotary:
        given["position_embeddings"] = script.module(rotary, h, at, shape_only=True)
    if absolute:
        h = script.function(torch.add, h, script.module(absolute, at))
    if dropout:
        h = script.module(dropout, h)
    for layer in layers:
        h = script.function(hidden_state, script.module(layer, h, **given))
    return script.module(norm, h)


def _head(script: _Script, model: Any, base: Any, h: fx.Node) -> fx.Node | None:
    heads = {name: child for name, child in model.named_children() if child is not base}
    heads.pop("causal_mask", None)
    if set(heads) == {"lm_head"}:
        return script.module("lm_head", h)
    if set(heads) == {"score"}:
        return script.function(_last, script.module("score", h))
    if not {"classifier"} <= set(heads) <= {"classifier", "dropout"}:
        return None
    pooler = script.find("pooler")
    if pooler and getattr(base, "pooler", None) is not None:
        h = script.module(pooler, h)
    elif script.find("layernorm"):
        h = script.function(_first, h)
    if "dropout" in heads:
        h = script.module("dropout", h)
    return script.module("classifier", h)


def _first(h: Tensor) -> Tensor:
    return h[:, 0]


def _last(h: Tensor) -> Tensor:
    return h[:, -1]
