"""Everything that a training needs except its run folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from layerwise.costs.example_labels import example_labels
from layerwise.costs.stages import block_seconds, stage_starts
from layerwise.data import Loader
from layerwise.experiment.build import Experiment, build
from layerwise.experiment.fastest import Fastest, fastest
from layerwise.experiment.registry import make
from layerwise.rules.base import Rule
from layerwise.runs.loggers import check_loggers
from layerwise.runtime import (
    DataParallel,
    LayerParallel,
    Runtime,
    Serial,
    check_rule,
    processes,
)
from layerwise.runtime.batchnorm import check_shared_statistics
from layerwise.runtime.processes import local_device, resolve
from layerwise.trainer import device_for, fabric_for
from layerwise.trainer.learning_rate import LearningRate
from layerwise.trainer.optim import Optimizer, Schedule

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Prepared:
    """Everything that a training needs except its run folder. Making it finds what is wrong with a
    config before a folder is made.

    Attributes:
        config: the config, with the runtime, device and data set that its names stand for here.
        fabric: device and precision.
        optimizer: recipe of the optimizer.
        schedule: schedule of the learning rate.
        experiment: data, network and rule.
        loaders: a loader for each split; None where the data has no such split.
        notice: what a probe found about precision and memory format; None if there was none.
    """

    config: dict[str, Any]
    fabric: Fabric
    optimizer: Optimizer
    schedule: Schedule
    experiment: Experiment
    loaders: Mapping[str, Loader | None]
    notice: str | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Prepared:
        """Build what a complete config describes, in this process.

        Raises:
            InputError: something in it does not exist here, or does not go together.
        """
        replicas = config.get("replicas", 1)
        runtime, stages = resolve(config.get("runtime", "auto"), config.get("stages"), replicas)
        config = {**config, "runtime": runtime, "stages": stages}
        device = local_device(config["device"])
        fabric = fabric_for(device, config["precision"])  # refuses what this machine does not have
        check_loggers(config["loggers"])
        optimizer = make("optimizer", config["optimizer"])
        schedule = make("schedule", config["schedule"])
        experiment = build(config)
        optimizer(experiment.rule.parameters())  # refused before a run folder is made
        if stages is not None and stages > 1:
            check_rule(experiment.rule, stages, experiment.settings.replay, replicas)
        if experiment.settings.sync_batchnorm:
            check_shared_statistics(device_for(device).type, replicas)
        experiment, notice = _as_fast_as_possible(experiment, device)
        if experiment.settings.precision != config["precision"]:
            fabric = fabric_for(device, experiment.settings.precision)
        for name in ("precision", "channels_last"):
            config[name] = getattr(experiment.settings, name)
        config["device"] = str(fabric.device)
        config["data"] = {**config["data"], "name": experiment.splits.name}
        part = (processes.rank() % replicas, replicas) if processes.started_together() else (0, 1)
        loaders = experiment.loaders(fabric.device, part=part)
        steps = math.ceil(len(loaders["train"]) / experiment.settings.accumulate)  # type: ignore[arg-type]
        phases = experiment.rule.phases(experiment.settings.epochs)
        LearningRate(optimizer.lr, schedule, phases, steps)  # refused likewise
        return cls(config, fabric, optimizer, schedule, experiment, loaders, notice)

    @property
    def processes(self) -> int | None:
        """The number of processes that train together; None for this process alone."""
        stages = self.config["stages"]
        return None if stages is None else stages * self.experiment.settings.replicas

    def runtime(self, rule: Rule) -> Runtime:
        """The runtime of a rule that is on its device: one process, or stages and replicas. Blocks
        are divided among stages by the time that each takes in this process."""
        settings, device = self.experiment.settings, self.fabric.device
        stages = self.config["stages"]
        if stages is None:
            return Serial(rule)
        if stages == 1:
            return DataParallel(rule, settings.sync_batchnorm)

        def starts() -> list[int]:
            batch = settings.batch_size // settings.replicas
            x = rule.blocks.zeros(batch * settings.views, torch.zeros((), device=device))
            y = example_labels(rule, batch, self.experiment.example_labels, device)
            with self.fabric.autocast():
                return stage_starts(block_seconds(rule, x, y), stages)

        return LayerParallel(
            rule,
            processes.from_leader(starts),
            timeout_s=settings.timeout,
            replay=settings.replay,
            replicas=settings.replicas,
            sync_batchnorm=settings.sync_batchnorm,
        )

    def unfinished_curriculum(self) -> str | None:
        """A notice where training ends before the curriculum admits all samples."""
        loader = self.loaders["train"]
        assert loader is not None
        if loader.curriculum is None:
            return None
        batches = len(loader) * self.experiment.settings.epochs
        admitted, size = loader.curriculum.count(batches - 1), len(loader.curriculum)
        if admitted == size:
            return None
        return (
            f"curriculum: the last of {batches} batches draws from {admitted} of {size} "
            f"{loader.unit}; a smaller --curriculum.every, or more epochs, admits more"
        )


def _as_fast_as_possible(experiment: Experiment, device: str) -> tuple[Experiment, str | None]:
    """An experiment with its precision and memory format found, and what a probe said of them.

    There is no probe in processes that were started together, which could find different things.
    """
    settings = experiment.settings
    precision, channels_last = settings.precision, settings.channels_last
    if processes.started_together():
        precision = "32" if precision == "auto" else precision
        found = Fastest(precision, channels_last is True, None)
    else:
        found = fastest(
            experiment.rule,
            device_for(device),
            settings.batch_size // settings.replicas,
            settings.views,
            precision,
            channels_last,
            experiment.example_labels,
        )
    chosen = replace(settings, precision=found.precision, channels_last=found.channels_last)
    config = {**experiment.config, "precision": found.precision}
    config["channels_last"] = found.channels_last
    return replace(experiment, config=config, settings=chosen), found.line
