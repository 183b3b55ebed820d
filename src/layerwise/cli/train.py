"""`layerwise train`."""

from __future__ import annotations

from typing import Any

import yaml

from layerwise.cli.console import ProgressBar
from layerwise.cli.options import experiment_config, experiment_parser, read_config
from layerwise.cli.parser import Tokens, asks_for_help, last, tokens_of
from layerwise.errors import InputError
from layerwise.experiment.training import resume, train
from layerwise.runtime import processes


def main(arguments: list[str]) -> None:
    """Train, or continue a run."""
    tokens = tokens_of(arguments)
    progress = ProgressBar(shown=processes.leads())
    if (run := last(tokens, "resume")) is not None and not asks_for_help(tokens):
        options = _resume_options(tokens)
        resume(run, **options, progress=progress)
        return
    parser, tokens = experiment_parser(read_config(tokens), "layerwise train")
    found = parser.read(tokens)
    train(experiment_config(found), runs=found["runs"], name=found["name"], progress=progress)


def _resume_options(tokens: Tokens) -> dict[str, Any]:
    """The options that may stand next to --resume."""
    options = ("device", "runtime", "stages", "replicas")
    known = ("--resume", *(f"--{name}" for name in options))
    if others := [name for t in tokens if (name := t.partition("=")[0]) not in known]:
        raise InputError(
            f"--resume contradicts {' '.join(others)}: a run continues with its own config; "
            "give --resume RUN alone, or with --device, --runtime, --stages and --replicas"
        )
    given = {name: last(tokens, name) for name in options}
    return {name: yaml.safe_load(value) for name, value in given.items() if value is not None}
