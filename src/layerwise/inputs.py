"""What networks are called with, and what they return: a tensor, or tensors in tuples and dicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from layerwise.errors import InputError

# The arguments of a network's forward: one tensor, a sequence of arguments, or named arguments.
Inputs = Any
# Which part of a network's output are its class scores: a key, an index, or a function of it.
Take = str | int | Callable[[Any], Tensor] | None

KEYS = ("logits", "out", "last_hidden_state")


def call(model: Callable[..., Any], inputs: Inputs) -> Any:
    """`model` of a tensor, of the arguments in a sequence, or of the named ones in a mapping."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs)


def applied(module: nn.Module, h: Tensor, inputs: Inputs) -> Tensor:
    """A module of h, and of the network's inputs where it reads them (`reads_inputs`)."""
    return module(h, inputs) if getattr(module, "reads_inputs", False) else module(h)


def scores(output: Any, take: Take, asked_by: str = "cut(output=)") -> Tensor:
    """The class scores in what a network returns.

    Args:
        output: a tensor, or a tuple, a mapping or an object of `transformers` with tensors in it.
        take: a key or index of it, or a function of it. By default: the tensor itself; `logits`,
            `out` or `last_hidden_state`, whichever comes first; the first of a tuple; the only
            tensor with a gradient.
        asked_by: the call, for errors.

    Raises:
        InputError: there is no such part, or it is no tensor, or `take` has to say which it is.
    """
    found = output
    if callable(take):
        found = take(output)
    elif take is not None:
        try:
            found = output[take]
        except (KeyError, IndexError, TypeError):
            found = getattr(output, str(take), None)
    elif not isinstance(output, Tensor):
        found = _scores(output)
    if not isinstance(found, Tensor):
        raise InputError(
            f"{asked_by}: the network returns {describe(output)}, of which "
            f"{'output=' + repr(take) + ' gives ' + type(found).__name__ if take is not None else 'it is not clear what the class scores are'}"  # noqa: E501
            "; give output= the key or index of one tensor, or a function of what it returns"
        )
    return found


def _scores(output: Any) -> Any:
    for key in KEYS:
        found = output.get(key) if isinstance(output, Mapping) else getattr(output, key, None)
        if isinstance(found, Tensor):
            return found
    if isinstance(output, Sequence) and output and isinstance(output[0], Tensor):
        return output[0]
    trained = [t for t in tensors(output) if t.requires_grad]
    return trained[0] if len(trained) == 1 else None


def describe(value: Any) -> str:
    """What kind of thing an input or output is, in a word or two."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and type {value.dtype}"
    if isinstance(value, Mapping):
        return f"{type(value).__name__} with {', '.join(map(str, value))}"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


def tensors(value: Any) -> list[Tensor]:
    """The tensors in a nested structure, in its order."""
    return [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]


def leaves(value: Any) -> list[Any]:
    """What a nested structure holds. A mapping that PyTorch does not know (the tokenizers' batch)
    counts as a dict."""
    return pytree.tree_leaves(plain(value))


def plain(value: Any) -> Any:
    """A mapping of any kind as a dict, whose insides PyTorch knows how to walk through."""
    return dict(value) if isinstance(value, Mapping) and type(value) is not dict else value


def leading(inputs: Inputs) -> Tensor:
    """The first tensor of a network's inputs, whose first axis is the batch.

    Raises:
        InputError: there is none.
    """
    if isinstance(inputs, Tensor):
        return inputs
    found = tensors(inputs)
    if not found:
        raise InputError(
            f"inputs: got {describe(inputs)}, without a tensor; give what the network takes: a "
            "tensor, a tuple of arguments, or a dict of named ones"
        )
    return found[0]


def detached(inputs: Inputs) -> Inputs:
    """The same without the graph that it came from."""
    if isinstance(inputs, Tensor):
        return inputs.detach()
    return pytree.tree_map_only(Tensor, Tensor.detach, plain(inputs))


def first_rows(inputs: Inputs, rows: int) -> Inputs:
    """The first samples of a batch: of every tensor whose first axis is as long as the batch."""
    whole = len(leading(inputs))

    def cut_off(tensor: Tensor) -> Tensor:
        return tensor[:rows] if tensor.dim() and len(tensor) == whole else tensor

    return pytree.tree_map_only(Tensor, cut_off, plain(inputs))


def converted(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """The same in another precision; whole numbers stay."""

    def convert(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return pytree.tree_map_only(Tensor, convert, plain(inputs))


def moved(inputs: Inputs, device: torch.device) -> Inputs:
    return pytree.tree_map_only(Tensor, lambda t: t.to(device), plain(inputs))


def signature(inputs: Inputs) -> tuple[Any, ...]:
    """What the shapes inside a network depend on: structure, shapes, types and devices."""
    found, spec = pytree.tree_flatten(plain(inputs))
    return (
        str(spec),
        *((tuple(v.shape), v.dtype, v.device) if isinstance(v, Tensor) else repr(v) for v in found),
    )
