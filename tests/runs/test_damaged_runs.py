"""Every file of a run that is read back: cut short, foreign, or missing. A command then works, or
says in one line what is wrong; it never gives a traceback, and never waits."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from layerwise.runs.checkpoint_file import pack, read_checkpoint

READ = (
    "config.yaml",
    "cost.json",
    "environment.json",
    "data.json",
    "metrics.csv",
    "alignment.jsonl",
    "outcomes/epoch-002.safetensors",
    "checkpoints/last.safetensors",
    "checkpoints/best.safetensors",
    "model.safetensors",
    "evaluation-train-last.json",
    "losses-train-last.safetensors",
)
COMMANDS = (
    "train --resume run",
    "train --resume run --checkpoint best",
    "evaluate run",
    "evaluate run --split train --losses true",
    "compare run --out out",
    "analyze run --questions extent,alignment,difficulty,feedback --samples 20",
    "analyze run --questions extent,difficulty --samples 20 --checkpoint best",
)
OTHER = (None, True, -1, 10**30, 1.5, float("nan"), "x", "", [], [1], {}, {"name": "x"})
CONTENTS: dict[str, bytes] = {
    "nothing": b"",
    "zero bytes": bytes(300),
    "noise": random.Random(0).randbytes(300),
    "a mapping": b"{}\n",
    "a list": b"[]\n",
    "a list of lists": b"[[1, 2], [3]]\n",
    "a text": b'"text"\n',
    "a number": b"3\n",
    "nothing in JSON": b"null\n",
    "deep nesting": b"[" * 3000 + b"]" * 3000,
    "half of YAML": b"a: [1",
    "a date": b"a: 2020-99-99\n",
    "a recursive anchor": b"a: &a {b: *a}\n",
    "other columns": b"epoch,a\r\n1,2\r\n",
    "rows of texts": b"epoch,a\r\n1,x\r\n2,y\r\n",
    "other rows": b'{"step": 1}\n{"step": "x"}\n[]\n',
    "rows of other lengths": b'{"step": 1, "angle": [1], "ratio": [1]}\n',
    "rows of texts in JSON": b'{"step": 1, "angle": ["a", 1], "ratio": [1, 2]}\n',
    "huge numbers": b"epoch,a\r\n1e400,1\r\n" + b"9" * 5000 + b",1\r\n",
}


def contents(path: Path, n: int) -> Iterator[tuple[str, bytes | None]]:
    """What a file may hold: the cases above, and `n` lengths at which it is cut short."""
    whole = path.read_bytes()
    yield "missing", None
    yield from CONTENTS.items()
    lengths = (
        range(len(whole)) if n >= len(whole) else random.Random(1).sample(range(len(whole)), n)
    )
    for length in lengths:
        yield f"cut at {length}", whole[:length]
    for length in lengths[:3]:
        yield f"zero bytes from {length}", whole[:length] + bytes(len(whole) - length)


def check(cli: Callable[..., Any], run: Path, case: str, commands: tuple[str, ...]) -> None:
    """All commands on a copy of the damaged run."""
    for command in commands:
        copy = Path("copy")
        shutil.copytree(run, copy / "run", symlinks=True)
        before = Path.cwd()
        os.chdir(copy)
        try:
            result = cli(command)
        except BaseException as error:
            raise AssertionError(f"{case}: {command}: {error!r}") from error
        finally:
            os.chdir(before)
            shutil.rmtree(copy)
        assert result.code in (0, 2), f"{case}: {command}: {result.err}"
        assert "Traceback" not in result.err, f"{case}: {command}: {result.err}"
        if result.code == 2:
            assert result.line.startswith(f"layerwise {command.split()[0]}: "), f"{case}: {command}"
            assert len(result.line) < 1000, f"{case}: {command}: {result.line}"


def damage(run: Path, name: str, n: int) -> Iterator[str]:
    """Damage a file in every way, one after the other."""
    path = run / name
    whole = path.read_bytes()
    for case, content in contents(path, n):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        yield f"{name}: {case}"
    path.unlink(missing_ok=True)
    path.mkdir()
    yield f"{name}: a folder"
    path.rmdir()
    path.symlink_to("nowhere")
    yield f"{name}: a broken link"
    path.unlink()
    path.write_bytes(whole)


@pytest.mark.parametrize("name", READ)
def test_a_damaged_file(name, run, cli):
    draw = random.Random(name)
    for k, case in enumerate(damage(run, name, 4)):
        if k % 6 == draw.randrange(6):  # test_a_file_damaged_in_every_way tries all
            check(cli, run, case, (draw.choice(COMMANDS),))


@pytest.mark.slow
@pytest.mark.parametrize("name", READ)
def test_a_file_damaged_in_every_way(name, run, cli):
    for case in damage(run, name, 40):
        check(cli, run, case, COMMANDS)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values within mappings and lists."""
    if at:
        yield at
    if isinstance(value, (dict, list)):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(one, (*at, key))


def replaced(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    """The same with another value at one place; `KeyError` as the new value takes it out."""
    found = value.copy()
    if len(at) > 1:
        found[at[0]] = replaced(value[at[0]], at[1:], new)
    elif new is KeyError:
        del found[at[0]]
    else:
        found[at[0]] = new
    return found


@pytest.mark.parametrize(
    "n", [12, pytest.param(1500, marks=pytest.mark.slow)], ids=["some", "many"]
)
@pytest.mark.parametrize("name", ["config.yaml", "cost.json"])
def test_a_value_of_another_kind(name, n, run, cli):
    read, dump = (
        (yaml.safe_load, yaml.safe_dump)
        if name.endswith("yaml")
        else (
            json.loads,
            json.dumps,
        )
    )
    whole, draw = read((run / name).read_text()), random.Random(n)
    cases = [(at, new) for at in places(whole) for new in (KeyError, *OTHER)]
    heavy = {"epochs", "layers", "width", "size", "batch_size"}  # a huge network is no fault
    for at, new in draw.sample(cases, min(n, len(cases))):
        if new == 10**30 and at[-1] in heavy and name == "config.yaml":
            continue
        (run / name).write_text(dump(replaced(whole, at, new)))
        check(cli, run, f"{name} {at}: {new}", (draw.choice(COMMANDS),))


@pytest.mark.parametrize(
    "n", [15, pytest.param(10**6, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_a_checkpoint_with_a_part_missing_or_of_another_kind(n, run, cli):
    """The file can be read, and its checksum is right."""
    path = run / "checkpoints" / "last.safetensors"
    whole, draw = read_checkpoint(path), random.Random(n)
    cases = [(at, new) for at in places(whole) for new in (KeyError, *OTHER)]
    for at, new in draw.sample(cases, min(n, len(cases))):
        path.write_bytes(pack(replaced(whole, at, new)))
        check(cli, run, f"{at}: {new}", (COMMANDS[0], draw.choice(COMMANDS[2:])))


def test_every_part_of_a_checkpoint_is_needed(run, cli):
    path = run / "checkpoints" / "last.safetensors"
    whole = read_checkpoint(path)
    assert len(whole) > 10
    for key in whole:
        for new in (KeyError, [1]):
            path.write_bytes(pack(replaced(whole, (key,), new)))
            result = cli("train --resume run")
            if key == "scaler" and new is not KeyError:
                continue  # only a training in float16 reads it
            if key in ("best_epoch", "mark") and new is KeyError:
                continue  # checkpoints of an older version lack them
            assert result.code == 2, (key, new)
            assert "checkpoint run/checkpoints/last.safetensors: " in result.line, (key, new)
