"""`layerwise train`."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from lightning_fabric import Fabric

from layerwise.analysis import feedback_angles, gradient_alignment
from layerwise.analysis.exits import sample_outcomes
from layerwise.cli.console import ProgressBar, console
from layerwise.cli.options import experiment_config, experiment_parser, read_config
from layerwise.cli.parser import last, tokens_of
from layerwise.costs.blocks import Costs
from layerwise.data import Augment, Loader, Text
from layerwise.errors import InputError, Interrupted, LostStage
from layerwise.experiment.build import Experiment, build, tuples
from layerwise.experiment.registry import make
from layerwise.report.analysis import draw_alignment, draw_feedback_training
from layerwise.report.curves import draw_run
from layerwise.report.pictures import Pictures
from layerwise.rules.base import LocalRule, Rule, Scale
from layerwise.rules.families.feedback import FeedbackRule
from layerwise.runs.environment import describe
from layerwise.runs.loggers import check_loggers, loggers
from layerwise.runs.run import ALIGNMENT, OUTCOMES, Run
from layerwise.runtime import (
    DataParallel,
    LayerParallel,
    Runtime,
    Serial,
    check_rule,
    processes,
)
from layerwise.runtime.batchnorm import check_shared_statistics
from layerwise.runtime.plan import block_seconds, stage_starts
from layerwise.runtime.processes import local_device, resolve
from layerwise.trainer import Trainer, fabric_for
from layerwise.trainer.optim import Optimizer, Schedule


@dataclass(frozen=True)
class Prepared:
    """Everything that a training needs but its run folder; what can be wrong was tried."""

    config: dict[str, Any]
    fabric: Fabric
    recipes: tuple[Optimizer, Schedule]
    experiment: Experiment
    loaders: Mapping[str, Loader | None]

    @classmethod
    def of(cls, config: dict[str, Any]) -> Prepared:
        replicas = config.get("replicas", 1)
        runtime, stages = resolve(config.get("runtime", "auto"), config.get("stages"), replicas)
        config = {**config, "runtime": runtime, "stages": stages}
        fabric = fabric_for(local_device(config["device"]), config["precision"])
        check_loggers(config["loggers"])
        recipes = make("optimizer", config["optimizer"]), make("schedule", config["schedule"])
        experiment = build(config)
        if stages is not None and stages > 1:
            check_rule(experiment.rule, stages, experiment.settings.replay)
        if experiment.settings.sync_batchnorm:
            check_shared_statistics(fabric.device.type, replicas)
        config["device"] = str(fabric.device)
        config["data"]["name"] = experiment.splits.name
        part = (processes.rank() % replicas, replicas) if processes.started_together() else (0, 1)
        loaders = experiment.loaders(fabric.device, part=part)
        return cls(config, fabric, recipes, experiment, loaders)

    @property
    def processes(self) -> int | None:
        """How many train it; None for this one alone."""
        stages = self.config["stages"]
        return None if stages is None else stages * self.experiment.settings.replicas


def main(arguments: list[str]) -> None:
    """Train, or continue a run."""
    tokens = tokens_of(arguments)
    if (resumed := last(tokens, "resume")) is not None:
        return _resume(resumed, tokens)
    tokens = read_config(tokens)
    parser, tokens = experiment_parser(tokens, "layerwise train")
    found = parser.read(tokens)
    root, name = Path(found["runs"]), found["name"]
    if processes.restarts() and name and (root / name / "config.yaml").is_file():
        return _resume(str(root / name), [])
    prepared = Prepared.of(experiment_config(found))
    config = prepared.config
    stem = "-".join(
        part.replace("/", "-").replace(":", "-").strip(".-")
        for part in (
            Path(config["data"]["name"]).name,
            config["model"]["name"],
            config["rule"]["name"],
        )
    ).lower()

    def create() -> Run:
        run = Run.create(root, name, stem, config)
        run.write("environment.json", json.dumps(describe(), indent=1).encode())
        return run

    return _go(create, prepared)


def _resume(path: str, tokens: list[str]) -> None:
    known = ("--resume", "--device", "--runtime", "--stages", "--replicas")
    others = [t.partition("=")[0] for t in tokens if t.partition("=")[0] not in known]
    if others:
        raise InputError(
            f"--resume contradicts {' '.join(others)}: a run continues with its own config; "
            "give --resume RUN alone, or with --device, --runtime, --stages and --replicas"
        )
    run = Run.open(path)
    with run.readable():
        config = dict(run.config)
        where = ("device", "runtime", "stages", "replicas")
        given = {key: last(tokens, key) for key in where}
        config |= {key: yaml.safe_load(value) for key, value in given.items() if value is not None}
        if given["runtime"] == "serial":
            config |= {"stages": None, "replicas": 1}
        elif (given["stages"] or given["replicas"]) and given["runtime"] is None:
            config["runtime"] = "auto"
        prepared = Prepared.of(config)
    return _go(lambda: Run.open(path), prepared)


def _go(folder: Callable[[], Run], prepared: Prepared) -> None:
    """Train in this process; or start the others, and let them."""
    settings = prepared.experiment.settings
    if prepared.processes is not None and not processes.started_together():
        path = folder().path
        arguments = ["train", "--resume", str(path), "--stages", str(prepared.config["stages"])]
        arguments += ["--replicas", str(settings.replicas)]
        try:
            code = processes.launch(arguments, prepared.processes, settings.restarts)
        except (LostStage, Interrupted) as error:
            message = f"{error}; continue: layerwise train --resume {path}"
            raise type(error)(message) from error
        if code:
            raise SystemExit(code)
        return
    with processes.together(prepared.fabric.device, settings.timeout) as leads:
        path = processes.from_leader(lambda: str(folder().path))
        run = Run(Path(path), writes=leads)
        with run.locked():
            _train(run, prepared)


def _train(run: Run, prepared: Prepared) -> None:
    config, experiment, fabric = prepared.config, prepared.experiment, prepared.fabric
    state = run.load("last")
    if (run.path / "cost.json").exists():  # it was trained before
        where = f"at step {state['step']}" if state else "at the start: no checkpoint was written"
        about = describe()
        run.log(f"resumed {where}; {fabric.device}, {about['cpu']}, torch {about['torch']}")
    if run.writes:
        costs = Costs.of(experiment.rule, experiment.settings.views)
        run.write("cost.json", costs.json().encode())
        console.print(costs.table())
    receiving = config["loggers"] if run.writes else []
    with ProgressBar(run.writes) as progress, loggers(receiving, run, config) as receivers:
        pictures = _pictures(experiment, fabric.device, run, receivers) if run.writes else None
        trainer = Trainer(
            experiment.network,
            experiment.rule,
            prepared.loaders,
            *prepared.recipes,
            experiment.settings,
            run,
            fabric,
            progress,
            receivers,
            pictures,
            functools.partial(_runtime, prepared),
            functools.partial(_keep_alignment, run),
            _outcomes(prepared, run) if run.writes and experiment.settings.outcomes else None,
        )
        if state is not None:
            trainer.load_state_dict(state)
        run.keep_metrics(trainer.epoch)
        run.keep_lines(ALIGNMENT, trainer.step)
        progress.say(f"{run.path}: {experiment.splits.name}, {fabric.device}")
        if notice := _unfinished_curriculum(prepared):
            run.log(notice)
            progress.say(notice)
        try:
            trainer.fit()
        finally:
            if run.writes and run.metrics():
                draw_run(run)
                _draw_alignment(run, experiment.rule)
    progress.say(f"done: {run.path}")


def _unfinished_curriculum(prepared: Prepared) -> str | None:
    """What to say where training ends before a curriculum admits all samples."""
    loader = prepared.loaders["train"]
    assert loader is not None
    if loader.curriculum is None:
        return None
    batches = len(loader) * prepared.experiment.settings.epochs
    admitted, size = loader.curriculum.count(batches - 1), len(loader.curriculum)
    if admitted == size:
        return None
    return (
        f"curriculum: the last of {batches} batches draws from {admitted} of {size} {loader.unit}; "
        "a smaller --curriculum.every, or more epochs, admits more"
    )


def _runtime(prepared: Prepared, rule: Rule) -> Runtime:
    """One process; or stages, divided by the time that blocks take here, and replicas."""
    settings, device = prepared.experiment.settings, prepared.fabric.device
    stages = prepared.config["stages"]
    if stages is None:
        return Serial(rule)
    if stages == 1:
        return DataParallel(rule, settings.sync_batchnorm)
    assert isinstance(rule, LocalRule)
    assert rule.blocks.shapes is not None
    labels = rule.blocks.shapes[-1][:-1]

    def starts() -> list[int]:
        batch = settings.batch_size // settings.replicas
        x = rule.blocks.zeros(batch * settings.views, torch.zeros((), device=device))
        y = torch.zeros(batch, *labels, dtype=torch.long, device=device)
        with prepared.fabric.autocast():
            return stage_starts(block_seconds(rule, x, y), stages)

    return LayerParallel(
        rule,
        processes.from_leader(starts),
        timeout_s=settings.timeout,
        replay=settings.replay,
        replicas=settings.replicas,
        sync_batchnorm=settings.sync_batchnorm,
    )


def _keep_alignment(
    run: Run, step: int, rule: Rule, x: torch.Tensor, y: torch.Tensor, scale: Scale
) -> None:
    """Add a row with every block's angle, degrees, and ratio of norms to alignment.jsonl; of a rule
    whose way back is not the weights also the angle to each weight."""
    found = gradient_alignment(rule, x, y, scale=scale)
    row: dict[str, Any] = {
        "step": step,
        "angle": [None if a is None else a.angle for a in found],
        "ratio": [None if a is None else a.ratio for a in found],
    }
    if isinstance(rule, FeedbackRule):
        angles = feedback_angles(rule).items()
        row["feedback"] = {name: a if math.isfinite(a) else None for name, a in angles}
    run.add_line(ALIGNMENT, row)


def _draw_alignment(run: Run, rule: Rule) -> None:
    rows = {run.path.name: run.lines(ALIGNMENT)}
    if picture := draw_alignment(rows, rule.blocks.names):
        run.write("curves/alignment.png", picture)
    if picture := draw_feedback_training(rows):
        run.write("curves/feedback.png", picture)


def _outcomes(prepared: Prepared, run: Run) -> Callable[[int, Rule], None]:
    """Writes the loss on every training image, and whether it was right, after an epoch."""
    fabric = prepared.fabric
    loader = prepared.experiment.loaders(fabric.device, evaluation=True)["train"]
    assert loader is not None

    def keep(epoch: int, rule: Rule) -> None:
        losses, right = sample_outcomes(rule, loader, fabric)
        content = safetensors.torch.save({"losses": losses, "right": right})
        run.write(f"{OUTCOMES}/epoch-{epoch:03d}.safetensors", content)

    return keep


def _pictures(
    experiment: Experiment, device: torch.device, run: Run, receivers: Sequence[Any]
) -> Pictures | None:
    """Pictures of eight images that do not train the network, where the run has such."""
    train, validation = experiment.splits.train, experiment.splits.validation
    part = train if validation is None else validation
    if not experiment.settings.pictures or isinstance(train, Text) or isinstance(part, Text):
        return None
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
