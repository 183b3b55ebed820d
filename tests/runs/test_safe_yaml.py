"""YAML from somebody else: plain values, each key once, within limits."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest
import yaml

from layerwise.runs import safe_yaml

NESTED = 'a: &a ["x","x","x","x","x","x","x","x","x"]\n' + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
REFUSED = {
    "a key twice": ("a: 1\na: 2", "the key 'a' stands twice"),
    "within": ("a: {b: 1, b: 1}", "the key 'b' stands twice"),
    "a key that is a number": ("1: 2", "a key that is not text"),
    "a key that is null": ("null: 2", "a key that is not text"),
    "a key that is a list": ("[1]: 2", "a key that is not text"),
    "billion laughs": (NESTED, "more than 50000 values"),
    "recursive anchor": ("a: &a [*a]", r"\*a stands in what it names"),
    "merged with itself": ("a: &a {<<: *a}", r"\*a stands in what it names"),
    "depth": ("[" * 3000 + "]" * 3000, "depth|inside each other"),
    "depth of blocks": ("\n".join(" " * k + "a:" for k in range(90)), "inside each other"),
    "NUL": ("a: 1\0", "not allowed"),
    "binary": ("a: !!binary aGVsbG8=", "could not determine a constructor"),
    "a set": ("a: !!set {b}", "could not determine a constructor"),
    "a date": ("a: !!timestamp 2020-01-01", "could not determine a constructor"),
    "an object": ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
    "digits": ("a: " + "9" * 5000, "more than 100 digits"),
    "size": ("# " + "x" * 20_000_000, "more than 256 KiB"),
    "a tag that does not fit": ("a: !!int x", "does not fit its tag"),
    "bool": ("a: !!bool x", "does not fit its tag"),
    "map": ("!!map x", "does not fit its tag"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_at_once(name: str) -> None:
    text, says = REFUSED[name]
    start = time.monotonic()
    with pytest.raises(yaml.YAMLError, match=says) as error:
        safe_yaml.load(text)
    assert time.monotonic() - start < 5
    assert "\n" not in safe_yaml.in_one_line(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("[1, -2, 0x10, 1_000, 0]", [1, -2, 16, 1000, 0]),
        ("[1.5, .5, 1.0e+3, .inf]", [1.5, 0.5, 1000.0, math.inf]),
        ("[010, 1:30, 2020-01-01, 1e-3]", ["010", "1:30", "2020-01-01", "1e-3"]),
        ("[true, no, null, ~, a, '1']", [True, False, None, None, "a", "1"]),
        ("a: &x {b: 1}\nc: *x", {"a": {"b": 1}, "c": {"b": 1}}),
        ("a: &x {b: 1}\nc: {<<: *x, b: 2}", {"a": {"b": 1}, "c": {"b": 2}}),
    ],
)
def test_read(text: str, value: object) -> None:
    assert safe_yaml.load(text) == value


def test_what_is_written_is_read() -> None:
    """Also a list that stands twice, for which PyYAML writes an alias."""
    shared = [1, 2.5, 1e-30, "010", "no", "1:30", None, True, "2020-01-01", "a: b\nc"]
    value = {"a": shared, "b": {"c": shared}}
    assert safe_yaml.load(yaml.safe_dump(value)) == value


def test_a_file_that_never_ends(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(OSError, match="Not a regular file"):
            safe_yaml.load_file(path)
