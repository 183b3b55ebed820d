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
    "epochs": "give a whole number",
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
    seeds, tokens = several_seeds(read_config(tokens))
    parser, tokens = experiment_parser(tokens, "layerwise train")
    found = parser.read(tokens)
    if found["checkpoint"] is not None:
        raise InputError(
            f"--checkpoint {found['checkpoint']}: only with --resume RUN, which continues from it"
        )
    with interrupts_end_at_once():
        from layerwise.experiment.training import train
    if seeds is None:
        train(experiment_config(found), runs=found["runs"], name=found["name"], progress=progress)
    else:
        with interrupts_end_at_once():
            from layerwise.experiment.seeds import train_seeds
        train_seeds(experiment_config(found), seeds, found["runs"], found["name"], progress)


def several_seeds(tokens: Tokens) -> tuple[list[int] | None, Tokens]:
    """The seeds in `--seed 0,1,2`, and the tokens with the first of them; None if there is one.

    Raises:
        InputError: something else than whole numbers, or one of them twice.
    """
    value = last(tokens, "seed")
    if value is None or "," not in value:
        return None, tokens
    words = value.strip("[]").split(",")
    if not all(re.fullmatch(r"\s*(0|[1-9]\d{0,18})\s*", word) for word in words):
        raise InputError(f"--seed {value}: give a whole number, or several, as 0,1,2")
    seeds = [int(word) for word in words]
    if len(set(seeds)) < len(seeds):
        raise InputError(f"--seed {value}: a seed is named twice; give each once")
    kept = [token for token in tokens if not token.startswith("--seed=")]
    return seeds, [*kept, f"--seed={seeds[0]}"]


def _resume_options(tokens: Tokens) -> dict[str, Any]:
    """The options that may stand next to --resume."""
    options = tuple(TAKES)
    known = ("--resume", *(f"--{name}" for name in options))
    if others := [name for t in tokens if (name := t.partition("=")[0]) not in known]:
        raise InputError(
            f"--resume contradicts {' '.join(others)}: a run continues with its own config; "
            "give --resume RUN alone, or with --checkpoint, --epochs, --device, --runtime, "
            "--stages and --replicas"
        )
    given = {name: last(tokens, name) for name in options}
    for token in tokens:  # such as `--stages` without a value, which would be left out silently
        name, _, value = token[2:].partition("=")
        if name in options and not value:
            raise InputError(f"--{name}: {TAKES[name]}")
    found: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for name in ("epochs", "stages", "replicas"):
        if name in found:
            found[name] = _count(name, found[name])
    return {name: value for name, value in found.items() if value is not None}


def _count(name: str, value: str) -> int | None:
    if value == "null":
        return None
    if not re.fullmatch("0|-?[1-9][0-9]{0,8}", value):  # elsewhere YAML refuses `010`
        raise InputError(f"--{name} {value}: {TAKES[name]}")
    return int(value)
