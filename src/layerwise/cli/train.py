"""`layerwise train`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from layerwise.cli.options import experiment_config, experiment_parser, read_config
from layerwise.cli.parser import last, tokens_of
from layerwise.console import ProgressBar, console
from layerwise.cost import Costs
from layerwise.data import Augment, Loader
from layerwise.environment import describe
from layerwise.errors import InputError
from layerwise.experiment import Experiment, build, tuples
from layerwise.loggers import check_loggers, loggers
from layerwise.optim import Optimizer, Schedule
from layerwise.registry import make
from layerwise.report.curves import draw_run
from layerwise.report.pictures import Pictures
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
    check_loggers(config["loggers"])
    recipes = make("optimizer", config["optimizer"]), make("schedule", config["schedule"])
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
    run = Run.create(Path(found["runs"]), found["name"], stem, config)
    with run.locked():
        run.write("environment.json", json.dumps(describe(), indent=1).encode())
        _train(run, config, experiment, loaders, recipes, fabric)
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
    with run.locked():
        with run.readable():
            config = run.config
            device = last(tokens, "device") or config["device"]
            fabric = fabric_for(device, config["precision"])
            recipes = make("optimizer", config["optimizer"]), make("schedule", config["schedule"])
            experiment = build(config)
            loaders = experiment.loaders(fabric.device)
            check_loggers(config["loggers"])
        state = run.load("last")
        where = f"at step {state['step']}" if state else "at the start: no checkpoint was written"
        about = describe()
        run.log(f"resumed {where}; {fabric.device}, {about['cpu']}, torch {about['torch']}")
        _train(run, config, experiment, loaders, recipes, fabric, state)


def _train(
    run: Run,
    config: Mapping[str, Any],
    experiment: Experiment,
    loaders: Mapping[str, Loader | None],
    recipes: tuple[Optimizer, Schedule],
    fabric: Fabric,
    state: Mapping[str, Any] | None = None,
) -> None:
    costs = Costs.of(experiment.rule)
    run.write("cost.json", costs.json().encode())
    console.print(costs.table())
    with ProgressBar() as progress, loggers(config["loggers"], run, config) as receivers:
        trainer = Trainer(
            experiment.network,
            experiment.rule,
            loaders,
            *recipes,
            experiment.settings,
            run,
            fabric,
            progress,
            receivers,
            _pictures(experiment, fabric.device, run, receivers),
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


def _pictures(
    experiment: Experiment, device: torch.device, run: Run, receivers: Sequence[Any]
) -> Pictures | None:
    """Pictures of eight images that do not train the network, where the run has such."""
    if not experiment.settings.pictures:
        return None
    train, validation = experiment.splits.train, experiment.splits.validation

    part = train if validation is None else validation
    # From end to end: a set may be sorted by class.
    part = part.subset(torch.linspace(0, len(part) - 1, 8).long().unique())
    loader = Loader(
        part.normalized_by(train),
        len(part),
        augment=Augment(**tuples(experiment.config["augment"])),
        train=False,
        device=device,
        channels_last=experiment.settings.channels_last,
    )
    [(x, y)] = loader.epoch(0)
    return Pictures(x, y, loader.denormalize, run.write, [to.log_image for to in receivers])
