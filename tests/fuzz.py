"""Random input of every kind: each case works, or is refused in one line, within a time limit.

    python tests/fuzz.py --seconds 120 --seed 0
    python tests/fuzz.py --seed 0 --case 1234        one case again

Cases are options of every command, configs, arguments in Python of everything in the registry,
labels and inputs of every rule, folders of images, and the files of a run. The command line has to
end with code 0, or with code 2 and one line; Python has to work, or to raise an `InputError` of one
line. Case n of a seed is always the same. Most run in this process, without the training itself;
now and then one runs as a process, with the training.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import math
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import typing
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import yaml
from PIL import Image

from layerwise import cut, data, models
from layerwise.arguments import alternatives
from layerwise.cli import main
from layerwise.errors import InputError, NonFiniteLoss
from layerwise.experiment import memory, training
from layerwise.experiment.config import complete, parameters
from layerwise.experiment.registry import GIVEN, KINDS, make, nested
from layerwise.objectives import Classify, Sum
from layerwise.report import analysis_figures, comparison

# How often each kind of case is drawn, compared with the others.
KINDS_OF_CASES = {
    "options": 3,
    "commands": 2,
    "config": 3,
    "arguments": 3,
    "network": 2,
    "rule": 4,
    "labels": 1,
    "images": 1,
    "run files": 2,
}
LIMIT_S = 20  # of a case; the machine may be busy
PROCESS_LIMIT_S = 180
MEMORY_BYTES = 4 << 30  # beyond what the process has when it starts
WEIGHTS_BYTES = 1 << 28  # what the library takes for this machine's free memory
SEQUENTIAL = ("Greedy", "HPFF", "LocalForwardGradient", "Overlap", "Sequential")  # need objectives
BASE = "train --model mlp --model.width 8 --epochs 1 --device cpu"
SMALL = "--model.width 8 --shape 1,8,8 --batch_size 4"
# Small cases of the commands next to `train`. "run" is the folder of a run.
COMMANDS = (
    f"bench step --model mlp {SMALL} --rounds 1",
    "bench data --seconds 0.01 --batch_size 8",
    f"plan mlp {SMALL} --rounds 1",
    f"describe mlp {SMALL}",
    "compare run",
    "analyze run --samples 20 --epochs 1 --device cpu",
    "evaluate run --device cpu",
)
# With large numbers, which are allowed, these take long.
LONG = {"batch_size", "epochs", "rounds", "seconds", "warmup", "microbatches", "shape", "channels"}
SLOW_MODELS = ("resnet110", "torchvision", "timm", "transformers")
NUMBERS = (
    *(0, 1, 2, 3, 5, 8, -1, -7, 1000, 2**20, 2**31, 2**63, 10**30, 10**5000),
    *(0.0, 0.5, 1.0, 1.5, -0.5, 1e-30, 1e30, 1e308, math.nan, math.inf, -math.inf),
)
THINGS = (
    *(None, True, False, "", "1", "1.5", "nan", "abc", "a\0b", "\udcff", [], [1], [1, 2], (0.5,)),
    *([[1]], {}, {"a": 1}, {1: 2}, b"x", object(), int, print),
    *(np.int64(3), np.float32(0.5), np.ones(2), torch.tensor(2), torch.ones(2)),
)
WORDS = (
    *"0 1 2 -1 010 0x10 1:30 1e3 1_0 1.5 nan inf -inf null ~ true yes abc".split(),  # noqa: SIM905
    *"[] [1] [1,2] [a,b] {} [ { ] *a !!python/name:os.system 2020-01-01".split(),  # noqa: SIM905
    *"' \" ä ~nosuchuser ~nosuchuser/x ../x".split(),  # noqa: SIM905
    *". / /dev/null /dev/zero --x 1e308 1e999 = a=b %s {0}".split(),  # noqa: SIM905
    *("", " ", "{a: 1}", "&a [*a]", "!!set {a}", "a\0b", "\udcff", "a" * 300, "[" * 3000),
    *("9" * 30, "9" * 5000, str(2**31), str(2**63)),
)


class Stopped(Exception):
    """The case got as far as the training."""


@dataclass
class Case:
    """One case: what it does, and how a person does the same."""

    kind: str
    command: str
    run: Callable[[], str]  # gives "worked" or "refused"
    arguments: list[str] = field(default_factory=list)  # for a process


@dataclass
class Failure:
    """A case that neither worked nor was refused in one line."""

    number: int
    case: Case
    why: str
    where: str


def value_of(hint: Any, default: Any, draw: random.Random) -> Any:
    """A value for an argument: often of its type, often not."""
    roll = draw.random()
    if roll < 0.3 and not isinstance(default, type):
        return default
    if roll < 0.6:
        kinds = alternatives(hint)
        literals = [a for one in kinds for a in typing.get_args(one) if isinstance(a, str)]
        if literals:
            return draw.choice(literals)
        if bool in kinds:
            return draw.random() < 0.5
        if float in kinds:
            return round(draw.uniform(-0.5, 2), 2)
        if int in kinds:
            return draw.randint(-1, 9)
    return draw.choice(NUMBERS if roll < 0.85 else THINGS)


def thing_of(kind: str, draw: random.Random) -> dict[str, Any]:
    """The specification of a thing in the registry, with some of its options."""
    name = draw.choice(list(KINDS[kind]))
    thing, inner = KINDS[kind][name], nested(KINDS[kind][name])
    found: dict[str, Any] = {"name": name}
    for option, (hint, default) in parameters(thing).items():
        if option in (*GIVEN.get(kind, ()), "shape", "num_classes"):
            continue
        required = option == "objectives" and name in SEQUENTIAL
        if required or draw.random() < 0.4:
            within = option in inner and (required or draw.random() < 0.9)
            found[option] = (
                thing_of(inner[option], draw) if within else value_of(hint, default, draw)
            )
    return found


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The options of a config and their values; `rule` is one as well as `rule.head.width`."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= {f"{prefix}{key}": value.get("name")} | flat(value, f"{prefix}{key}.")
        elif key != "name":
            found[f"{prefix}{key}"] = value
    return found


def near(value: Any, draw: random.Random) -> Any:
    """A value like another, which may be good as well."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw.randint(0, 2 * value + 4)
    if isinstance(value, float):
        return round(draw.uniform(0, 2 * value + 0.1), 3)
    if isinstance(value, list):
        return [near(v, draw) for v in value]
    return value


def large(value: Any) -> bool:
    """Whether a number in a specification is so large that a step may rightly take long."""
    if isinstance(value, dict | list | tuple):
        return any(map(large, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int | float | np.number) and not -64 <= value <= 64


def takes_long(word: str) -> bool:
    """Whether a word is a large number, or several numbers."""
    try:
        return not -10 < float(word) < 10
    except ValueError:
        return "," in word


def shown(value: Any) -> str:
    """A value as text, also where Python refuses to print a number of so many digits."""
    try:
        return repr(value)[:800]
    except ValueError:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{k!r}: {shown(v)}" for k, v in value.items()) + "}"
        return "10**5000"


def in_one_line(step: Callable[[], Any]) -> str:
    """Run a step; what it refuses it refuses in one line."""
    try:
        step()
    except InputError as error:
        text = str(error)
        assert text, "an InputError without text"
        assert "\n" not in text, f"an InputError of several lines: {text!r}"
        assert len(text) < 2000, f"an InputError of {len(text)} letters"
        return "refused"
    except NonFiniteLoss:
        pass
    return "worked"


def of_command(arguments: list[str]) -> str:
    """Run a command; what it refuses it refuses in one line, with code 2."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            code = main(arguments)
    except Stopped:
        return "worked"
    except SystemExit as end:
        code = int(end.code or 0)
    check_end(code, said.getvalue())
    return "refused" if code == 2 else "worked"


def check_end(code: int, said: str) -> None:
    """Check how a command ended."""
    lines = said.strip().splitlines()
    assert "Traceback" not in said, f"a traceback: {lines[-1]}"
    assert code in (0, 2) or (code == 1 and "not finite" in said), f"exit code {code}: {lines}"
    if code == 2:
        assert lines, "exit code 2 without a line"
        assert lines[-1].startswith("layerwise "), f"the last line is {lines[-1]!r}"


@functools.cache
def options_of_train() -> dict[str, Any]:
    """The options of `train` with any of the rules, and their defaults."""
    found: dict[str, Any] = {"name": None, "config": None, "recipe": "demo-dgl"}
    for rule in KINDS["rule"]:
        objectives = {"objectives": "Classify+Reconstruct"} if rule in SEQUENTIAL else {}
        found |= flat(complete({"rule": {"name": rule, **objectives}}))
    return found


class Fuzz:
    """Makes the cases.

    Args:
        folder: an empty folder, which becomes the current one.
        seed: of the cases.
        kinds: of cases; by default all.
    """

    def __init__(self, folder: Path, seed: int, kinds: Sequence[str] = ()):
        self.folder, self.seed = folder, seed
        self.kinds = {
            kind: (KINDS_OF_CASES[kind], getattr(self, kind.replace(" ", "_")))
            for kind in kinds or KINDS_OF_CASES
        }
        self.defaults = options_of_train()
        self.names = sorted(self.defaults)
        self.trained: Path | None = None
        self.shown: dict[str, dict[str, Any]] = {}

    def case(self, number: int) -> Case:
        """Case `number` of this seed."""
        draw = random.Random(f"{self.seed}-{number}")
        torch.manual_seed(draw.randrange(2**31))
        weights, makers = zip(*self.kinds.values(), strict=True)
        return draw.choices(makers, weights)[0](draw)

    # ------------------------------------------------------------ the command line

    def options(self, draw: random.Random) -> Case:
        """Options of `train`, and of other commands."""
        if draw.random() < 0.15:
            command = draw.choice(("evaluate", "analyze", "compare", "describe", "list", "trian"))
            words = [command, *(draw.choice(WORDS) for _ in range(draw.randint(0, 3)))]
        else:
            words = BASE.split()
            for _ in range(draw.randint(1, 3)):
                name = draw.choice(self.names)
                words.append(f"--{name}" if draw.random() < 0.98 else f"--{name}x")
                if draw.random() < 0.97:
                    words.append(self._word(name, draw))
        return self._command("options", words)

    def commands(self, draw: random.Random) -> Case:
        """Options of the other commands, which run in whole."""
        base = draw.choice(COMMANDS)
        words, defaults = base.split(), self._options_of(base)
        for _ in range(draw.randint(1, 3)):
            name = draw.choice(list(defaults))
            words.append(f"--{name}" if draw.random() < 0.98 else f"--{name}x")
            if draw.random() < 0.97:
                words.append(self._word(name, draw, defaults))
        case = self._command("commands", words)
        plainly = case.run

        def run() -> str:
            for folder in ("run", "experiments", "out"):
                shutil.rmtree(folder, ignore_errors=True)
            if "run" in words:
                self.copy_of_run()
            threads = torch.get_num_threads()
            try:
                with undrawn():
                    return plainly()
            finally:
                torch.set_num_threads(threads)

        case.run, case.arguments = run, []
        return case

    def _options_of(self, base: str) -> dict[str, Any]:
        """The options of a command and their defaults, as its help shows them."""
        if base not in self.shown:
            said, line = io.StringIO(), re.sub(r" run\b", "", base)
            with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
                main([*line.split(), "--help"])
            found = re.findall(r"^  --(\S+)(?: (.*))?$", said.getvalue(), re.MULTILINE)
            self.shown[base] = {name: yaml.safe_load(default) for name, default in found}
            assert self.shown[base], said.getvalue()
        return self.shown[base]

    def _word(self, name: str, draw: random.Random, defaults: dict[str, Any] | None = None) -> str:
        last = name.rpartition(".")[2]
        kind = last.removesuffix("s")
        if kind in KINDS and draw.random() < 0.6:
            named = [n for n in KINDS[kind] if defaults is None or n not in SLOW_MODELS]
            return draw.choice(named)
        long = defaults is not None and last in LONG
        if not long and draw.random() < 0.5:
            value = near((defaults or self.defaults)[name], draw)
            return value if isinstance(value, str) else json.dumps(value)
        return draw.choice([word for word in WORDS if not (long and takes_long(word))])

    def config(self, draw: random.Random) -> Case:
        """A config of somebody else: values of other types, or bytes of other values."""
        config: dict[str, Any] = {"model": {"name": "mlp", "width": 8}, "epochs": 1}
        for kind in ("rule", "optimizer", "schedule"):
            if draw.random() < 0.3:
                config[kind] = plain(thing_of(kind, draw))
        for _ in range(draw.randint(0, 3)):
            name = draw.choice(self.names)
            place, *parts = config, *name.split(".")
            for part in parts[:-1]:
                place = place.setdefault(part, {})
                if not isinstance(place, dict):
                    break
            else:
                place[parts[-1]] = plain(
                    near(self.defaults[name], draw)
                    if draw.random() < 0.6
                    else draw.choice(NUMBERS + THINGS)
                )
        text = yaml.safe_dump(config, allow_unicode=True).encode("utf-8", "surrogatepass")
        text = spoiled(text, draw) if draw.random() < 0.3 else text
        if draw.random() < 0.1:
            text = b"".join(draw.choice(WORDS).encode("utf-8", "replace") for _ in range(4))
        Path("config.yaml").write_bytes(text)
        case = self._command("config", ["train", "--config", "config.yaml", "--device", "cpu"])
        case.command += f"   # config.yaml: {text[:1500]!r}"
        return case

    def _command(self, kind: str, words: list[str]) -> Case:
        command = f"layerwise {shlex.join(words)}"

        def run() -> str:
            with no_training():
                return of_command(words)

        return Case(kind, command, run, words)

    # ------------------------------------------------------------ Python

    def arguments(self, draw: random.Random) -> Case:
        """Arguments of a recipe or an objective."""
        kind = draw.choice([k for k in KINDS if k not in ("model", "rule")])
        options = thing_of(kind, draw)
        thing = KINDS[kind][options.pop("name")]
        given = {k: v for k, v in options.items() if not isinstance(v, dict) or "name" not in v}

        def run() -> str:
            if kind == "objective" and draw.random() < 0.2:
                weight = draw.choice(NUMBERS + THINGS)
                return in_one_line(lambda: Sum([(weight, Classify())]))
            return in_one_line(lambda: thing(**given))

        return Case("arguments", f"{thing.__qualname__}(**{shown(given)})", run)

    def network(self, draw: random.Random) -> Case:
        """A network, made from options, and a pass through it."""
        options = thing_of("model", draw)
        shape = draw.choice([(1, 8, 8), (3, 32, 32), (2, 9, 7), (16,), (0, 8, 8), (1, 1, 1), (3,)])
        classes = draw.choice([5, 5, 5, 2, 1, 0, -1])
        options.pop("arch", None)
        if options["name"] in ("timm", "torchvision", "transformers"):
            options["arch"] = draw.choice(["resnet18", "nosuch", "", 3])
        slow = options["name"] in SLOW_MODELS

        def run() -> str:
            def step() -> None:
                model = make("model", options, shape=shape, num_classes=classes)
                if not large(options) and not slow and math.prod(shape) < 100:
                    dtype = torch.long if len(shape) == 1 else None
                    model.eval()(torch.zeros(2, *shape, dtype=dtype))

            return in_one_line(step)

        call = f"make('model', {shown(options)}, shape={shape}, num_classes={classes})"
        return Case("network", call, run)

    def rule(self, draw: random.Random) -> Case:
        """A rule, made from options, and a step of it."""
        options = thing_of("rule", draw)

        def run() -> str:
            def step() -> None:
                x = torch.rand(4, 1, 8, 8)
                network = models.mlp((1, 8, 8), 5, layers=2, width=8)
                if options["name"] == "NoProp":
                    network = models.noprop_cnn((1, 8, 8), 5, steps=3, channels=2, width=8)
                if options["name"] == "DiffusionBlocks":
                    network = models.diffusion_vit((1, 8, 8), 5, layers=1, width=8, heads=2)
                rule = make("rule", options, blocks=cut(network, blocks=3, example=x))
                views = max(1, rule.needs_views)
                if not large(options) and views < 4:
                    rule.phases(3)
                    rule.backward(x.repeat(views, 1, 1, 1), torch.tensor([0, 1, 2, 4]))

            return in_one_line(step)

        return Case("rule", f"make('rule', {shown(options)}, blocks=...)", run)

    def labels(self, draw: random.Random) -> Case:
        """Labels of other types, shapes and values."""
        name = draw.choice([n for n in KINDS["rule"] if n not in ("NoProp", "DiffusionBlocks")])
        good = torch.tensor([0, 1, 2, 4])
        y: Any = draw.choice(
            [
                *(good.int(), good.byte(), good.float(), good.double(), good.bool(), good + 1),
                *(good - 3, good * 2**40, good.numpy(), good.tolist(), None, "abc", 3, good[0]),
                *(good[:2], good[:0], good.unsqueeze(1), good.expand(4, 4), torch.eye(5)[good]),
                *(2 * torch.eye(5)[good], torch.eye(5)[good] * math.nan, torch.eye(4)),
                *(good.to(torch.complex64), torch.full((4,), -100), object(), [good]),
            ]
        )
        where = draw.choice(["plain", "plain", "no_grad", "inference_mode", "one sample", "later"])

        def run() -> str:
            def step() -> None:
                options = {"name": name}
                if name in SEQUENTIAL:
                    options["objectives"] = {"name": "Classify", "head": {"name": "Linear"}}
                x = torch.rand(4, 1, 8, 8)
                network = models.mlp((1, 8, 8), 5, layers=2, width=8, batch_norm=True)
                rule = make("rule", options, blocks=cut(network, blocks=3, example=x))
                context = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
                if where == "later":
                    rule.backward(x, good)
                with context.get(where, contextlib.nullcontext)():
                    if where == "one sample":
                        rule.backward(x[:1], good[:1])
                    rule.backward(x, y)

            return in_one_line(step)

        return Case("labels", f"rules.{name}(...).backward(x, {y!r}), {where}"[:500], run)

    # ------------------------------------------------------------ files

    def images(self, draw: random.Random) -> Case:
        """A folder of images."""
        shutil.rmtree("images", ignore_errors=True)
        root = Path("images")
        root.mkdir()
        parts = draw.choice(
            [("",), ("",), ("train", "test"), ("Train", "val"), ("a/b",), ("train",)]
        )
        good = draw.random() < 0.5
        for part in parts:
            for c in range(draw.randint(2, 3) if good else draw.randint(0, 3)):
                other = draw.choice([f"c{c}", ".c", "ä", "a b", "c0"])
                folder = root / part / (f"c{c}" if good else other)
                folder.mkdir(parents=True, exist_ok=True)
                for k in range(draw.randint(10, 14) if good else draw.randint(0, 12)):
                    self._image(folder, k, draw, good)
        name, size = (
            draw.choice(["folder:images", "images", "folder:nosuch"]),
            draw.choice([None, 8]),
        )

        def run() -> str:
            return in_one_line(lambda: data.load(name, size=size, root=self.folder / "cache"))

        tree = sorted(str(p.relative_to(root)) for p in root.rglob("*"))
        return Case("images", f"data.load({name!r}, size={size})   # {tree}"[:800], run)

    def _image(self, folder: Path, k: int, draw: random.Random, good: bool) -> None:
        path = folder / f"{k}.{draw.choice(['png', 'png', 'png', 'jpg', 'bmp', 'PNG', 'txt'])}"
        mode, size = (
            draw.choice(["L", "RGB", "L", "RGBA", "P", "I;16", "1"]),
            draw.choice([8, 8, 5]),
        )
        mode, size = ("L", 8) if good else (mode, size)
        kind = {"png": "PNG", "jpg": "JPEG", "bmp": "BMP"}.get(path.suffix[1:].lower(), "PNG")
        written = io.BytesIO()
        with contextlib.suppress(OSError):
            Image.new(mode, (size, 8)).save(written, kind)
        image = written.getvalue()
        if path.exists() or path.is_symlink():
            return
        roll = 1.0 if good else draw.random()
        if roll < 0.06:
            image = spoiled(image, draw) if image else b""
        elif roll < 0.08:
            path.symlink_to(draw.choice([".", "..", "nosuch", "/dev/zero"]))
            return
        elif roll < 0.09:
            os.mkfifo(path)
            return
        path.write_bytes(image)

    def run_files(self, draw: random.Random) -> Case:
        """A run of which one file has other bytes, values or is not there."""
        self.copy_of_run()
        files = sorted(p for p in Path("run").rglob("*") if p.is_file() and p.suffix != ".png")
        path = draw.choice(files)
        before = path.read_bytes()
        roll = draw.random()
        if roll < 0.1:
            path.unlink()
            how = "removed"
        else:
            after = other_value(path, draw) if roll < 0.5 else None
            after = spoiled(before, draw) if after is None else after
            path.write_bytes(after)
            how = repr(after[:300]) if len(after) < 3000 else f"{len(before)} -> {len(after)} bytes"
        words = draw.choice(
            [
                "evaluate run --device cpu",
                "train --resume run --device cpu",
                "compare run --out out",
            ]
        ).split()

        def run() -> str:
            shutil.rmtree("out", ignore_errors=True)
            with no_training():
                return of_command(words)

        return Case("run files", f"layerwise {shlex.join(words)}   # {path}: {how}", run)

    def copy_of_run(self) -> None:
        """Make the folder "run", a copy of a small run."""
        if self.trained is None:
            self.trained = self._train()
        shutil.rmtree("run", ignore_errors=True)
        shutil.copytree(self.trained, "run")

    def _train(self) -> Path:
        words = f"{BASE} --model.layers 1 --blocks 2 --runs runs --name trained --outcomes true"
        with contextlib.redirect_stderr(io.StringIO()), undrawn():
            assert main(words.split()) == 0
        return Path("runs/trained").resolve()


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """Without pictures, because drawing takes longer than all else."""
    with contextlib.ExitStack() as patches:
        for module, name in (
            (training, "draw_run"),
            (comparison, "draw_runs"),
            (comparison, "draw_blocks"),
        ):
            patches.enter_context(mock.patch.object(module, name))
        patches.enter_context(mock.patch.object(analysis_figures, "_png", return_value=b"none"))
        yield


@contextlib.contextmanager
def no_training() -> Iterator[None]:
    """Everything but the training itself, and the processes that it would start."""

    def stop(*args: object) -> None:
        raise Stopped

    with mock.patch.object(training, "_train", stop):
        yield


def plain(value: Any) -> Any:
    """A value that YAML can hold."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**4000:
        return "9" * 5000
    return value if isinstance(value, int | float | str | bytes | None) else str(value)


def spoiled(data: bytes, draw: random.Random) -> bytes:
    """Bytes with flips, cuts, repetitions or insertions."""
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(data) + 1)
        end = min(len(data), at + draw.randint(1, 40))
        way = draw.randrange(5)
        if way == 0 and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]
        elif way == 1:
            data = data[:at]
        elif way == 2:
            data = data[:at] + data[end:]
        elif way == 3:
            data = data[:end] + data[at:]
        else:
            word = draw.choice(WORDS)[:100].encode("utf-8", "replace")
            data = data[:at] + word + data[at:]
    return data


def other_value(path: Path, draw: random.Random) -> bytes | None:
    """A YAML or JSON file with one value of another type or missing; None for other files."""
    if path.suffix not in (".yaml", ".json"):
        return None
    whole = yaml.safe_load(path.read_text())
    place = whole
    while isinstance(place, dict | list) and place:
        key = draw.choice(list(place)) if isinstance(place, dict) else draw.randrange(len(place))
        if not isinstance(place[key], dict | list) or not place[key] or draw.random() < 0.3:
            if draw.random() < 0.3:
                del place[key]
            else:
                place[key] = plain(draw.choice(NUMBERS + THINGS))
            break
        place = place[key]
    if path.suffix == ".json":
        return json.dumps(whole, default=str).encode("utf-8", "replace")
    return yaml.safe_dump(whole, sort_keys=False).encode("utf-8", "surrogatepass")


def tried(number: int, case: Case, ended: Counter[tuple[str, str]]) -> Failure | None:
    """Run a case in this process; the failure, or None."""

    def late(*args: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        small = mock.patch.object(memory, "_memory", return_value=WEIGHTS_BYTES)
        with warnings.catch_warnings(), small:
            warnings.simplefilter("ignore")
            ended[case.kind, case.run()] += 1
    except TimeoutError:
        return Failure(number, case, f"took more than {LIMIT_S} s", "")
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        within = [f for f in frames if "layerwise/" in f.filename] or frames
        where = f"{within[-1].filename}:{within[-1].lineno}"
        return Failure(number, case, f"{type(error).__name__}: {error}"[:400], where)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def as_process(number: int, case: Case) -> Failure | None:
    """Run a case's command as a process, with the training."""
    command = [sys.executable, "-m", "layerwise", *case.arguments]
    try:
        ended = subprocess.run(command, capture_output=True, timeout=PROCESS_LIMIT_S, check=False)
        check_end(ended.returncode, ended.stderr.decode(errors="replace"))
    except subprocess.TimeoutExpired:
        return Failure(number, case, f"took more than {PROCESS_LIMIT_S} s as a process", "")
    except (AssertionError, OSError, ValueError) as error:
        if isinstance(error, AssertionError):
            return Failure(number, case, f"as a process: {error}"[:400], "")
    return None


def fuzz(
    seconds: float,
    seed: int = 0,
    only: int | None = None,
    processes: bool = True,
    kinds: Sequence[str] = (),
    tell: Callable[[Failure], None] = lambda failure: None,
) -> tuple[Counter[tuple[str, str]], list[Failure]]:
    """Run cases for some seconds, in an empty folder.

    Args:
        seconds: how long.
        seed: of the cases.
        only: the number of the only case.
        processes: whether some cases run as processes.
        kinds: of cases; by default all.
        tell: called with each failure as it is found.

    Returns:
        How many cases of each kind worked and were refused; and the failures.
    """
    here, failures, ended = os.getcwd(), [], Counter[tuple[str, str]]()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            source = Fuzz(Path(folder), seed, kinds)
            end, next_process = time.monotonic() + seconds, 200
            number = only or 0
            while time.monotonic() < end:
                case = source.case(number)
                failure = tried(number, case, ended)
                number += 1
                if failure is None and processes and number >= next_process and case.arguments:
                    failure, next_process = as_process(number - 1, case), number + 400
                if failure is not None:
                    failures.append(failure)
                    tell(failure)
                if only is not None:
                    print(case.kind, case.command, sep="\n")
                    return ended, failures
        finally:
            os.chdir(here)
    return ended, failures


def report(seed: int, failure: Failure) -> str:
    """A failure, with a command that shows it."""
    return "\n".join(
        (
            f"{failure.case.kind}: {failure.why}",
            *((f"  at {failure.where}",) if failure.where else ()),
            f"  python tests/fuzz.py --seed {seed} --case {failure.number}",
            f"  {failure.case.command}\n",
        )
    )


def summary(seed: int, ended: Counter[tuple[str, str]], failures: list[Failure]) -> str:
    """How many cases of each kind worked, were refused and failed."""
    places = {failure.where or failure.case.command for failure in failures}
    count = ended.total() + len(failures)
    lines = [f"seed {seed}: {count} cases, {len(failures)} failures at {len(places)} places"]
    for kind in sorted({kind for kind, _ in ended}):
        lines.append(
            f"  {kind:<10} {ended[kind, 'worked']:>6} worked {ended[kind, 'refused']:>6} refused"
        )
    return "\n".join(lines)


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="", help="such as options,config; by default all")
    parser.add_argument("--case", type=int, help="only this case")
    options = parser.parse_args()
    torch.set_num_threads(1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    seen = set()

    def tell(failure: Failure) -> None:
        place = failure.where or failure.case.command
        if place not in seen:
            print(report(options.seed, failure), flush=True)
        seen.add(place)

    kinds = options.kinds.split(",") if options.kinds else ()
    ended, failures = fuzz(options.seconds, options.seed, options.case, kinds=kinds, tell=tell)
    print(summary(options.seed, ended, failures))
    print(f"  {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB at most")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(run())
