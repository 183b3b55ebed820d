"""A tensor in nested arguments or results: find it, or put another tensor in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from layerwise.inputs import leaves

Path = tuple[Any, ...]  # indices, keys and attribute names that lead to a value in a structure


def with_paths(value: Any) -> list[tuple[Path, Any]]:
    """The leaves of a nested structure, each with its path.

    Left out is what lies in a class that is registered as a pytree without its keys, unless it is a
    mapping, as the outputs of transformers before version 5 are.
    """
    found: list[tuple[Path, Any]] = []
    for entries, leaf in pytree.tree_flatten_with_path(value, is_leaf=_without_keys)[0]:
        path = tuple(_key(entry) for entry in entries)
        if not _without_keys(leaf):
            found.append((path, leaf))
        elif isinstance(leaf, Mapping):
            for key, part in leaf.items():
                found += [((*path, key, *rest), inner) for rest, inner in with_paths(part)]
    return found


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


def _without_keys(value: Any) -> bool:
    """Whether the value is of a registered class that cannot say where its parts are."""
    node = pytree.SUPPORTED_NODES.get(type(value))
    return node is not None and node.flatten_with_keys_fn is None
