"""`layerwise train`."""

from __future__ import annotations

import re
from typing import Any

from layerwise.cli.interrupts import interrupts_end_at_once
from layerwise.cli.options import experiment_config, experiment_parser, read_config
from layerwise.cli.parser import Tokens, asks_for_help, last, tokens_of
from layerwise.errors import InputError
from layerwise.report.progress_bar import ProgressBar
from layerwise.runtime import processes

TAKES = {
    "checkpoint": "give last, best or a file in the run's folder",
    "device": "give cpu, cuda, cuda:0, mps, ... or auto",
    "runtime": "give auto, serial or layer_parallel",
    "stages": "give a whole number or null",
    "replicas": "give a whole number",
}


def main(arguments: list[str]) -> None:
    """Train, or continue a run."""
    tokens = tokens_of(arguments)
    progress = ProgressBar(shown=processes.leads())
    if "--resume" in tokens and not asks_for_help(tokens):
        raise InputError("--resume: give the folder of a run")
    if (run := last(tokens, "resume")) is not None and not asks_for_help(tokens):
        options = _resume_options(tokens)
        with interrupts_end_at_once():  # seconds, which neither help nor an error waits for
            from layerwise.experiment.training import resume
        resume(run, **options, progress=progress)
        return
    parser, tokens = experiment_parser(read_config(tokens), "layerwise train")
    found = parser.read(tokens)
    if found["checkpoint"] is not None:
        raise InputError(
            f"--checkpoint {found['checkpoint']}: only with --resume RUN, which continues from it"
        )
    with interrupts_end_at_once():
        from layerwise.experiment.training import train
    train(experiment_config(found), runs=found["runs"], name=found["name"], progress=progress)


def _resume_options(tokens: Tokens) -> dict[str, Any]:
    """The options that may stand next to --resume."""
    options = ("checkpoint", "device", "runtime", "stages", "replicas")
    known = ("--resume", *(f"--{name}" for name in options))
    if others := [name for t in tokens if (name := t.partition("=")[0]) not in known]:
        raise InputError(
            f"--resume contradicts {' '.join(others)}: a run continues with its own config; "
            "give --resume RUN alone, or with --checkpoint, --device, --runtime, --stages and "
            "--replicas"
        )
    given = {name: last(tokens, name) for name in options}
    for token in tokens:  # such as `--stages` without a value, which would be left out silently
        name, _, value = token[2:].partition("=")
        if name in options and not value:
            raise InputError(f"--{name}: {TAKES[name]}")
    found: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for name in ("stages", "replicas"):
        if name in found:
            found[name] = _count(name, found[name])
    return {name: value for name, value in found.items() if value is not None}


def _count(name: str, value: str) -> int | None:
    if value == "null":
        return None
    if not re.fullmatch("0|-?[1-9][0-9]{0,8}", value):  # elsewhere YAML refuses `010`
        raise InputError(f"--{name} {value}: {TAKES[name]}")
    return int(value)
