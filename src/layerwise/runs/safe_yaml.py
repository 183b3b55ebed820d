"""YAML as this package reads it: plain values of limited size, each key once.

Every reader of YAML calls `load`, because a config may come from somebody else.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 1 << 18
DEEPEST = 50  # mappings and lists inside each other
MOST_NODES = 50_000  # aliases counted as often as they repeat what they name
MOST_DIGITS = 100
PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")
# What YAML 1.1 takes for a whole number, without a leading zero (`010` is 8) and base 60 (`1:30`
# is 90), which people write for something else: these stay text.
WHOLE = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)$")
REAL = re.compile(
    r"^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """A safe loader without dates, binary data and sets, which takes a key once."""

    yaml_constructors = {  # noqa: RUF012 (PyYAML has it so)
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in PLAIN
    }
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag.rpartition(":")[2] not in ("timestamp", "int", "float")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in getattr(node, "value", ()):
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.tag != "tag:yaml.org,2002:str":
                raise _error("a key that is not text", key)
            if key.value in seen:
                raise _error(f"the key {key.value[:60]!r} stands twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> int:
        if len(node.value) > MOST_DIGITS:
            raise _error(f"a number of more than {MOST_DIGITS} digits", node)
        return super().construct_yaml_int(node)


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", WHOLE, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", REAL, list("-+0123456789."))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def load(text: str) -> Any:
    """The value that a text in YAML describes: None, a bool, a number, text, a list or a dict.

    Raises:
        yaml.YAMLError: not YAML, or beyond the limits; `in_one_line` words it.
    """
    check(text)
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise yaml.YAMLError(f"a value does not fit its tag: {error!r}") from error  # `!!int x`
    finally:
        loader.dispose()


def load_file(path: str | os.PathLike[str]) -> Any:
    """The value that a file in YAML describes.

    Raises:
        OSError: it cannot be read, or is no regular file.
        UnicodeDecodeError: not text in UTF-8.
        yaml.YAMLError: as `load`.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(0, "Not a regular file")
    with open(path, "rb") as file:
        data = file.read(MOST_BYTES + 1)
    _check_size(len(data))
    return load(data.decode("utf-8"))


def check(text: str) -> None:
    """Check a text in YAML against the limits, before anything is made of it.

    Raises:
        yaml.YAMLError: not YAML, or beyond the limits.
    """
    _check_size(len(text))
    sizes: dict[str | None, int] = {}  # what an anchor names, in nodes
    within: list[tuple[str | None, int]] = []  # open lists and mappings: anchor, nodes before
    nodes = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            # An anchor that is still open names what the alias is in.
            if event.anchor in sizes and any(event.anchor == anchor for anchor, _ in within):
                raise yaml.YAMLError(f"*{event.anchor} stands in what it names")
            nodes += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.NodeEvent):
            nodes += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
            if isinstance(event, yaml.CollectionStartEvent):
                within.append((event.anchor, nodes))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = within.pop()
            if anchor is not None:
                sizes[anchor] = nodes - before + 1
        if len(within) > DEEPEST:
            raise yaml.YAMLError(f"more than {DEEPEST} lists and mappings inside each other")
        if nodes > MOST_NODES:
            raise yaml.YAMLError(f"more than {MOST_NODES} values")


def in_one_line(error: yaml.YAMLError) -> str:
    """The message of an error, in one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:296]} ..."


def _check_size(size: int) -> None:
    if size > MOST_BYTES:
        raise yaml.YAMLError(f"more than {MOST_BYTES >> 10} KiB")


def _error(problem: str, node: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
