"""`layerwise train`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from layerwise.cli.options import experiment_config, experiment_parser, read_config
from layerwise.cli.parser import last, tokens_of
from layerwise.console import ProgressBar, console
from layerwise.cost import Costs
from layerwise.environment import describe
from layerwise.errors import InputError
from layerwise.experiment import Experiment, build
from layerwise.loggers import make_loggers
from layerwise.registry import make
from layerwise.report.curves import draw_run
from layerwise.run import Run
from layerwise.trainer import Trainer, fabric_for


def main(arguments: list[str]) -> None:
    """Train, or continue a run."""
    tokens = tokens_of(arguments)
    if (resumed := last(tokens, "resume")) is not None:
        return _resume(resumed, tokens)
    tokens = read_config(tokens)
    parser, tokens = experiment_parser(tokens, "layerwise train")
    found = parser.read(tokens)
    config = experiment_config(found)
    # Everything that can be wrong is tried before a folder is made.
    fabric = fabric_for(config["device"], config["precision"])
    experiment = build(config)
    config["device"] = str(fabric.device)
    config["data"]["name"] = experiment.splits.name
    stem = "-".join(
        part.replace("/", "-").replace(":", "-").strip(".-")
        for part in (
            Path(config["data"]["name"]).name,
            config["model"]["name"],
            config["rule"]["name"],
        )
    ).lower()
    loaders = experiment.loaders(fabric.device)
    run = Run.create(Path(found["runs"]), config["name"], stem, config)
    with run.locked():
        _train(run, config, experiment, loaders, fabric)
    return None


def _resume(path: str, tokens: list[str]) -> None:
    others = [
        t.partition("=")[0] for t in tokens if t.partition("=")[0] not in ("--resume", "--device")
    ]
    if others:
        raise InputError(
            f"--resume contradicts {' '.join(others)}: a run continues with its own config; "
            "give --resume RUN alone, or with --device"
        )
    run = Run.open(path)
    config = run.config
    device = last(tokens, "device") or config.get("device", "auto")
    with run.locked():
        fabric = fabric_for(device, config.get("precision", "32"))
        experiment = build_of_run(run)
        state = run.load("last")
        run.log(f"resumed{'' if state else ' from the start: no checkpoint was written'}")
        loaders = experiment.loaders(fabric.device)
        _train(run, config, experiment, loaders, fabric, state)


def build_of_run(run: Run) -> Experiment:
    """The experiment of a run's config.

    Raises:
        InputError: the config lacks something, as one that was edited may.
    """
    try:
        return build(run.config)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"run {run.path}: config.yaml does not describe a run: {error!r}"
        ) from error


def _train(
    run: Run,
    config: Mapping[str, Any],
    experiment: Experiment,
    loaders: Mapping[str, Any],
    fabric: Any,
    state: Mapping[str, Any] | None = None,
) -> None:
    costs = Costs.of(experiment.rule)
    run.write("cost.json", costs.json().encode())
    run.write("environment.json", json.dumps(describe(), indent=1).encode())
    console.print(costs.table())
    settings = replace(experiment.settings, device=str(fabric.device))
    with ProgressBar() as progress:
        trainer = Trainer(
            experiment.network,
            experiment.rule,
            loaders,
            make("optimizer", config["optimizer"]),
            make("schedule", config["schedule"]),
            settings,
            run,
            fabric,
            progress,
            make_loggers(config["loggers"], run, config),
        )
        if state is not None:
            trainer.load_state_dict(state)
        run.keep_metrics(trainer.epoch)
        progress.say(f"{run.path}: {experiment.splits.name}, {fabric.device}")
        try:
            trainer.fit()
        finally:
            if run.metrics():
                draw_run(run)
    progress.say(f"done: {run.path}")
