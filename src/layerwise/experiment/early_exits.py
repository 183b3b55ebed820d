"""A run's early exits that decide: thresholds, costs, agreement."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from layerwise.analysis import difficulty
from layerwise.analysis.exits import EarlyExit, Predictions, fit_temperatures, predictions
from layerwise.data import Text
from layerwise.experiment.evaluation import Evaluation, costs_of
from layerwise.experiment.observers import outcomes_of
from layerwise.experiment.recorded_data import about_scores
from layerwise.report.exit_figure import draw_exits
from layerwise.runs.rows import finite

THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
# Of the curve in the picture: from 0 to 0.9999, closer together near 1, and one above 1.
CURVE = (*(1 - 10 ** (-i / 15) for i in range(61)), 2.0)


@dataclass(frozen=True)
class EarlyExits:
    """What a run's network gives if every sample leaves at the first exit that is sure.

    The labels of a text are its tokens: each of them leaves by itself, as in `generate`.

    Attributes:
        evaluation: the run, measured on a split.
        temperatures: of every block's exit; None for a block that does not predict.
        fitted: whether the temperatures were fitted; otherwise they are 1.
        predictions: of the exits, on the split.
        flops: of an image, or of a window's token, that leaves at each exit; None if the run's
            costs are not known.
        result: what the JSON file holds.
    """

    evaluation: Evaluation
    temperatures: Sequence[float | None]
    fitted: bool
    predictions: Predictions
    flops: Sequence[float] | None
    result: dict[str, Any]

    @classmethod
    def of(cls, evaluation: Evaluation, threshold: float | None = None) -> EarlyExits:
        """Fit the temperatures on the validation split, and measure on the evaluation's split.

        Without a validation split all temperatures are 1.

        Args:
            evaluation: the run.
            threshold: the one threshold to measure; by default several.

        Raises:
            InputError: a threshold that is none; no block but the last predicts; the rule does not
                predict by running its blocks in order.
        """
        experiment, fabric = evaluation.experiment, evaluation.fabric
        rule, given = experiment.rule, evaluation.result
        blocks = EarlyExit(rule, 1.0 if threshold is None else threshold).exits
        validation = experiment.loaders(fabric.device, evaluation=True)["validation"]
        if validation is None:
            temperatures = [1.0 if k in blocks else None for k in range(len(rule.blocks))]
        else:
            temperatures = fit_temperatures(rule, validation, fabric)
        found = predictions(rule, evaluation.loader, fabric, temperatures)
        costs = costs_of(evaluation.run, len(rule.blocks))
        tokens = math.prod(evaluation.loader.shape) if evaluation.loader.tokens else 1
        flops = None if costs is None else [f / tokens for f in costs.deciding(found.blocks)]
        agree, right = found.agree, found.right.double()

        def accuracies(of: torch.Tensor) -> list[float] | None:
            return right[:, of].mean(1).tolist() if of.any() else None

        fixed = right.mean(1).tolist()
        result = {
            **{key: given[key] for key in ("checkpoint", "epoch", "split", "data")},
            "labels": len(found.labels),
            "blocks": [evaluation.names[k] for k in found.blocks],
            "temperatures": [temperatures[k] for k in found.blocks],
            "fitted_on": None if validation is None else "validation",
            "thresholds": [
                found.at(t, flops) for t in (THRESHOLDS if threshold is None else (threshold,))
            ],
            "fixed": [
                {"accuracy": a, **({} if costs is None else {"flops": costs.up_to(k)[1] / tokens})}
                for k, a in zip(found.blocks, fixed, strict=True)
            ],
            "agreement": found.agreement.tolist(),
            "agree": {
                "share": agree.double().mean().item(),
                "accuracy": accuracies(agree),
                "accuracy_otherwise": accuracies(~agree),
            },
            "over_epochs": _over_epochs(evaluation, found),
        }
        return cls(evaluation, temperatures, validation is not None, found, flops, result)

    def write(self) -> list[Path]:
        """Write the results into the run folder; earlier ones that differ are kept.

        A JSON file holds the numbers. A safetensors file holds `classes` and `confidence` of every
        exit (E, N), the `labels` (N,), and `disagree`, the indices of the samples on which exits
        disagree: in the order of the split, and among the labels that count. A picture is drawn if
        the run's costs are known.

        Returns:
            The paths of the files.

        Raises:
            InputError: a file cannot be written.
        """
        evaluation, found = self.evaluation, self.predictions
        tensors = {
            "classes": found.classes,
            "confidence": found.confidence,
            "labels": found.labels,
            "disagree": (~found.agree).nonzero().squeeze(1),
        }
        about = about_scores(evaluation.experiment.splits, evaluation.result["split"])
        files = {".json": json.dumps(finite(self.result), indent=1).encode()}
        files[".safetensors"] = safetensors.torch.save(tensors, about)
        if (picture := self._picture()) is not None:
            files[".png"] = picture
        return [evaluation.keep("exits", ending, content) for ending, content in files.items()]

    def _picture(self) -> bytes | None:
        if self.flops is None:
            return None
        rows = [self.predictions.at(t, self.flops) for t in CURVE]
        names = [f"{k} {self.evaluation.names[k]}" for k in self.predictions.blocks]
        unit = "token" if self.evaluation.loader.tokens else "image"
        return draw_exits(rows, self.result["thresholds"], self.result["fixed"], names, unit)


def _over_epochs(evaluation: Evaluation, found: Predictions) -> dict[str, Any] | None:
    """How often training images were right during the training, if all exits now agree on them and
    otherwise; and which share was learned and never forgotten (`unforgettable`). None for another
    split, and for a run that did not record it."""
    train = evaluation.experiment.splits.train
    if evaluation.result["split"] != "train" or isinstance(train, Text):
        return None
    outcomes = outcomes_of(evaluation.run, len(train))
    if outcomes is None:
        return None
    hard, agree = difficulty(outcomes[1]), found.agree

    def means(values: torch.Tensor) -> dict[str, float | None]:
        parts = {"agree": values[agree], "otherwise": values[~agree]}
        return {key: of.double().mean().item() if len(of) else None for key, of in parts.items()}

    return {**means(hard.consistency), "unforgettable": means(hard.unforgettable)}
