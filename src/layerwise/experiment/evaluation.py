"""Every exit of a run, measured on a split of its data."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch

from layerwise.analysis.exits import TestTime, evaluate, sample_losses
from layerwise.costs.blocks import Costs
from layerwise.data import Loader
from layerwise.errors import InputError, reason
from layerwise.experiment.build import Experiment, build
from layerwise.experiment.config import config_of
from layerwise.experiment.recorded_data import about_scores, check_data
from layerwise.objectives.classify import is_cross_entropy
from layerwise.rules.base import criterion_of
from layerwise.runs.rows import finite
from layerwise.runs.run import Run
from layerwise.trainer import fabric_for, load_evaluated

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Evaluation:
    """What every exit of a run gives on one split.

    Attributes:
        run: the run.
        experiment: its data and network, with the weights of a checkpoint.
        loader: samples of the split, in order.
        fabric: device and precision.
        result: what the JSON file holds, without the confusion matrix.
        confusion: how often each class (a row) was taken for each (a column); None if there are too
            many classes.
    """

    run: Run
    experiment: Experiment
    loader: Loader
    fabric: Fabric
    result: dict[str, Any]
    confusion: list[list[int]] | None

    @classmethod
    def of(
        cls,
        run: Run,
        *,
        checkpoint: str = "last",
        split: str = "test",
        test_time: TestTime = "none",
        device: str = "auto",
    ) -> Evaluation:
        """Measure a run.

        Args:
            run: a run folder.
            checkpoint: last, best (the best epoch on the validation split), or a file in the run's
                folder.
            split: test, validation or train.
            test_time: views of each image, over which class scores are averaged: none, mirror or
                shift, as in `averaged_exits`.
            device: as `Settings.device`.

        Raises:
            InputError: no such checkpoint, split or device; files that cannot be read; data that
                changed since the run began.
        """
        state = run.checkpoint(checkpoint)
        with run.readable():
            experiment = build(config_of(run), to_train=False)
        check_data(run, experiment.splits)
        fabric = fabric_for(device, experiment.settings.precision)
        with run.loading(checkpoint):
            load_evaluated(experiment.rule, state)
        loader = experiment.loaders(fabric.device, evaluation=True).get(split)
        if loader is None:
            raise InputError(
                f"--split {split}: {experiment.splits.name} has no such split here; give test, "
                "train, or validation where the run has one"
            )
        classes = experiment.splits.num_classes
        exits, ensembles, confusion = evaluate(experiment.rule, loader, classes, fabric, test_time)
        costs = costs_of(run, len(exits))
        if costs is not None:
            for i, exit in enumerate(exits):
                if exit is not None:
                    exit["parameters"], exit["flops"] = costs.up_to(i)
        result: dict[str, Any] = {
            "checkpoint": checkpoint,
            "epoch": state["epoch"],
            "split": split,
            **({} if test_time == "none" else {"test_time": test_time}),
            "data": experiment.splits.name,
            loader.unit: loader.size,
            "exits": exits,
            "ensembles": ensembles,
        }
        if not is_cross_entropy(criterion_of(experiment.rule)):
            result["criterion"] = experiment.config["criterion"]["name"]
        if (rate := experiment.splits.entropy_rate) is not None:
            result["entropy_rate"] = rate
        return cls(run, experiment, loader, fabric, result, confusion)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the blocks."""
        return self.experiment.rule.blocks.names

    def write(self) -> Path:
        """Write the result as JSON into the run folder.

        An earlier result that differs is kept: the new file has a number.

        Returns:
            The path of the file with this result.

        Raises:
            InputError: the file cannot be written.
        """
        return self.keep("evaluation", ".json", self._json().encode())

    def write_losses(self) -> Path:
        """Measure the loss on every sample, and write the losses into the run folder.

        A file of other losses is never overwritten, because the curriculum of another run may read
        it: the new file has a number.

        Returns:
            The path of the file with these losses.

        Raises:
            InputError: the file cannot be written.
        """
        losses = {"losses": sample_losses(self.experiment.rule, self.loader, self.fabric)}
        if not self.loader.tokens:
            losses["labels"] = torch.cat(list(self.loader.labels(0))).cpu()
        about = about_scores(self.experiment.splits, self.result["split"])
        content = safetensors.torch.save(losses, about)
        return self.keep("losses", ".safetensors", content)

    def keep(self, kind: str, ending: str, content: bytes) -> Path:
        """Write a file into the run folder, under the first number that holds no other content.

        Args:
            kind: the beginning of its name, which goes on with the split and the checkpoint.
            ending: the end of its name.
            content: what it holds.

        Returns:
            Its path.

        Raises:
            InputError: it cannot be written.
        """
        name = f"{kind}-{self._suffix}"
        path = self.run.path / f"{name}{ending}"
        number = 1
        while os.path.lexists(path) and not _holds(path, content):
            number += 1
            path = self.run.path / f"{name}-{number}{ending}"
        if not os.path.lexists(path):
            self.run.write(path.name, content)
        return path

    @property
    def _suffix(self) -> str:
        views = self.result.get("test_time")
        return f"{self.result['split']}-{self._checkpoint}" + (f"-{views}" if views else "")

    @property
    def _checkpoint(self) -> str:
        """The name of the checkpoint in a file's name: a path without its slashes."""
        path = self.run.checkpoint_path(self.result["checkpoint"]).relative_to(self.run.path)
        parts = [part for part in path.with_suffix("").parts if part != "checkpoints"]
        return "-".join(parts)

    def _json(self) -> str:
        """The result with each row of the confusion matrix on one line."""
        text = json.dumps(finite(self.result), indent=2)
        if self.confusion is None:
            return text
        rows = ",\n    ".join(map(json.dumps, self.confusion))
        return text[:-2] + f',\n  "confusion": [\n    {rows}\n  ]\n}}'


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.is_file() and path.read_bytes() == content
    except OSError:  # it may not be read, so it may hold anything
        return False


def costs_of(run: Run, blocks: int) -> Costs | None:
    """The costs in a run's cost.json; None if it has none.

    Raises:
        InputError: the file cannot be read, or is that of another network.
    """
    path = run.path / "cost.json"
    if not os.path.lexists(path):
        return None
    remedy = f"layerwise train --resume {run.path} writes it again"
    try:
        costs = Costs.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"run {run.path}: cost.json cannot be read: {reason(error)}; {remedy}"
        ) from error
    if len(costs.blocks) != blocks:
        raise InputError(
            f"run {run.path}: cost.json describes {len(costs.blocks)} blocks, and the network has "
            f"{blocks}; {remedy}"
        )
    return costs
