"""The inputs and outputs of networks: a tensor, or tensors in tuples and dicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from layerwise.errors import InputError

# The arguments of a network's forward: one tensor, a sequence of arguments, or named arguments.
Inputs = Any
# Which part of a network's output are the class scores: a key, an index, or a function of it.
Take = str | int | Callable[[Any], Tensor] | None

# Names under which a network may return its class scores, in the order in which they are tried.
KEYS = ("logits", "out", "last_hidden_state")


def call(model: Callable[..., Any], inputs: Inputs) -> Any:
    """Call `model` with a tensor, with the arguments in a sequence, or with the named ones in a
    mapping."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs)


def applied(module: nn.Module, h: Tensor, inputs: Inputs) -> Tensor:
    """A module's output for h, (B, ...); if the module `reads_inputs`, it gets these, too."""
    return module(h, inputs) if reads_inputs(module) else module(h)


def reads_inputs(module: nn.Module) -> bool:
    """Whether a module is called with the network's inputs as well: its `reads_inputs`."""
    # `getattr(module, ...)` of an attribute that is missing takes as long as a small layer.
    return module.__dict__.get("reads_inputs", getattr(type(module), "reads_inputs", False))


def scores(output: Any, take: Take, asked_by: str = "cut(output=)") -> Tensor:
    """The class scores in a network's output.

    Args:
        output: a tensor, or a tuple, a mapping or an object of `transformers` with tensors in it.
        take: a key or index of the output, or a function of it. By default: the tensor itself;
            `logits`, `out` or `last_hidden_state`, whichever is found first; the first of a tuple;
            the only tensor with a gradient.
        asked_by: the call, for errors.

    Raises:
        InputError: there is no such part, it is not a tensor, or it is not clear which part it is
            without `take`.
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
        problem = f"output={take!r} gives {type(found).__name__}"
        if take is None:
            problem = "it is not clear which part of that are the class scores"
        raise InputError(
            f"{asked_by}: the network returns {describe(output)}, and {problem}; give output= the "
            "key or index of one tensor, or a function of the network's output"
        )
    return found


def _scores(output: Any) -> Any:
    """The class scores in an output that is not a tensor; None if they are not clear."""
    for key in KEYS:
        found = output.get(key) if isinstance(output, Mapping) else getattr(output, key, None)
        if isinstance(found, Tensor):
            return found
    if isinstance(output, Sequence) and output and isinstance(output[0], Tensor):
        return output[0]
    trained = [t for t in tensors(output) if t.requires_grad]
    return trained[0] if len(trained) == 1 else None


def describe(value: Any) -> str:
    """A short description of an input or output, for errors."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and type {value.dtype}"
    if isinstance(value, Mapping):
        return f"{type(value).__name__} with {', '.join(map(str, value))}"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


def tensors(value: Any) -> list[Tensor]:
    """The tensors in a nested structure, in the structure's order."""
    return [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]


def leaves(value: Any) -> list[Any]:
    """The values in a nested structure, in the structure's order.

    A mapping that PyTorch does not know (a tokenizer's batch) counts as a dict.
    """
    return pytree.tree_leaves(plain(value))


def plain(value: Any) -> Any:
    """A mapping of any kind as a dict, which PyTorch's pytrees can open; anything else as it is."""
    return dict(value) if isinstance(value, Mapping) and type(value) is not dict else value


def leading(inputs: Inputs) -> Tensor:
    """The first tensor of a network's inputs, (B, ...).

    Raises:
        InputError: the inputs hold no tensor.
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
    """The inputs, detached from the graph that they came from."""
    if isinstance(inputs, Tensor):
        return inputs.detach()
    return pytree.tree_map_only(Tensor, Tensor.detach, plain(inputs))


def in_order(inputs: Inputs, example: Inputs) -> Inputs:
    """Inputs with the example's names, in its order; other inputs as they are."""
    both = isinstance(inputs, Mapping) and isinstance(example, Mapping)
    if not both or set(inputs) != set(example):
        return inputs
    return {name: inputs[name] for name in example}


def first_rows(inputs: Inputs, rows: int) -> Inputs:
    """The first `rows` samples of a batch; as `chosen_rows`."""
    return chosen_rows(inputs, slice(rows))


def first_views(inputs: Inputs, labels: Tensor) -> Inputs:
    """The samples of a batch; of several views, view after view, the first.

    Raises:
        InputError: as `number_of_views`.
    """
    number_of_views(inputs, len(labels), "inputs")
    return first_rows(inputs, len(labels))


def number_of_views(inputs: Inputs, labels: int, asked_by: str) -> int:
    """How many augmented views of each sample the inputs hold, for so many labels.

    Raises:
        InputError: the number of inputs is not the number of labels or a multiple of it.
    """
    rows = len(leading(inputs))
    views, rest = divmod(rows, max(1, labels))
    if rest or not views or (rows and not labels):
        found = f"{rows} inputs"
        if isinstance(inputs, Mapping):
            name = next(name for name, value in inputs.items() if tensors(value))
            found += f" (rows of {name!r}, which comes first)"
        raise InputError(
            f"{asked_by}: got {found} for {labels} labels; give one label for each input, or V "
            "augmented views of each input, view after view"
        )
    return views


def chosen_rows(inputs: Inputs, index: Tensor | slice, example: Inputs = None) -> Inputs:
    """The samples of a batch at `index`.

    Every tensor whose first axis is as long as the batch has a row for each sample, and is indexed.
    The samples share the others, which stay as they are. Choose from the whole batch: a shared
    tensor may be as long as a part of it.

    Args:
        inputs: the batch.
        index: (N,) int64, or a slice.
        example: another batch. A tensor that its samples share has no rows in `inputs` either, even
            if it happens to be as long.
    """
    values, spec = pytree.tree_flatten(plain(inputs))
    rows = _have_rows(values, inputs)
    others, of_example = pytree.tree_flatten(plain(example))
    if spec == of_example and tensors(example):
        rows = [a and b for a, b in zip(rows, _have_rows(others, example), strict=True)]
    chosen = [value[index] if has else value for value, has in zip(values, rows, strict=True)]
    return pytree.tree_unflatten(chosen, spec)


def _have_rows(values: Sequence[Any], inputs: Inputs) -> list[bool]:
    """Which of the inputs' values have a row for each sample."""
    whole = len(leading(inputs))
    return [isinstance(v, Tensor) and v.dim() > 0 and len(v) == whole for v in values]


def converted(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """The inputs in another precision; integer tensors stay as they are."""

    def convert(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return pytree.tree_map_only(Tensor, convert, plain(inputs))


def moved(inputs: Inputs, device: torch.device) -> Inputs:
    """The inputs on another device."""
    return pytree.tree_map_only(Tensor, lambda t: t.to(device), plain(inputs))


def signature(inputs: Inputs) -> tuple[Any, ...]:
    """A key that is equal for inputs with equal structure, shapes, types and devices.

    The shapes inside a network depend on these.
    """
    found, spec = pytree.tree_flatten(plain(inputs))
    return (
        str(spec),
        *((tuple(v.shape), v.dtype, v.device) if isinstance(v, Tensor) else repr(v) for v in found),
    )
