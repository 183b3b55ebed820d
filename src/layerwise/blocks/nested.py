"""A tensor in nested arguments or results: find it, or put another tensor in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from layerwise.inputs import leaves

Path = tuple[Any, ...]  # indices, keys and attribute names that lead to a value in a structure


def path_of(entries: Any) -> Path:
    """The path that `pytree.tree_flatten_with_path` describes by `entries`."""
    return tuple(_key(entry) for entry in entries)


def at_path(value: Any, path: Path) -> Any:
    """The value at `path` in a nested structure.

    Raises:
        LookupError, AttributeError, TypeError: the structure has no such place.
    """
    for key in path:
        is_attribute = isinstance(key, str) and not isinstance(value, Mapping)
        value = getattr(value, key) if is_attribute else value[key]
    return value


def replaced(value: Any, old: Tensor, new: Tensor) -> Any:
    """The nested structure with `new` wherever it holds `old`.

    A part without `old` stays the same object, because others may hold that part, too.
    """
    if value is old:
        return new
    if isinstance(value, tuple | list) and type(value) in (tuple, list):
        parts = [replaced(part, old, new) for part in value]
        same = all(a is b for a, b in zip(parts, value, strict=True))
        return value if same else type(value)(parts)
    if isinstance(value, Tensor) or not any(leaf is old for leaf in leaves(value)):
        return value
    return pytree.tree_map_only(Tensor, lambda t: new if t is old else t, value)


def _key(entry: Any) -> Any:
    for name in ("idx", "key", "name"):
        if hasattr(entry, name):
            return getattr(entry, name)
    return entry
