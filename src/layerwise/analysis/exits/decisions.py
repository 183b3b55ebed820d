"""What the exits of a trained network predict on data, and what deciding among them gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from layerwise.analysis.exits.measure import classes_of, prepared
from layerwise.analysis.exits.temperature import (
    checked_temperatures,
    checked_threshold,
    temperature,
)
from layerwise.analysis.frozen import Source
from layerwise.arguments import is_finite, shortened
from layerwise.errors import InputError
from layerwise.labels import IGNORED
from layerwise.rules.base import Rule

if TYPE_CHECKING:
    from lightning_fabric import Fabric

KEPT = 1 << 25  # class scores of an exit, from which its temperature is fitted


@torch.no_grad()
def fit_temperatures(
    rule: Rule, loader: Source, fabric: Fabric | None = None
) -> list[float | None]:
    """The `temperature` of every block's exit; None for a block that does not predict.

    Give data that neither trained the network nor measure it: the validation split. Labels that do
    not count are left out, and the true class of a soft label is its most probable one. If there
    are more than 2^25 class scores, every n-th label is used.

    Args:
        rule: moved to the device, and put into eval mode.
        loader: the data: a loader, or batches as `data.Batches` reads them.
        fabric: device and precision; by default the rule's device, in 32 bits.

    Raises:
        InputError: the labels are not classes of the network's scores; none of them counts.
    """
    rule, loader, fabric = prepared(rule, loader, fabric, "fit_temperatures(loader)")
    found: dict[int, list[tuple[Tensor, Tensor]]] = {}
    labels = loader.size * (math.prod(loader.shape) if loader.tokens else 1)
    with fabric.autocast(), torch.random.fork_rng(devices=[]):
        for x, y in loader.epoch(0):
            for k, z in enumerate(rule.exits(x)):
                if z is not None:
                    scores, true = _counted(z, y)
                    every = max(1, math.ceil(labels * scores.shape[1] / KEPT))
                    found.setdefault(k, []).append((scores[::every], true[::every]))
    _refuse_none("fit_temperatures", sum(len(true) for _, true in found[len(rule.blocks) - 1]))
    return [
        temperature(*map(torch.cat, zip(*found[k], strict=True))) if k in found else None
        for k in range(len(rule.blocks))
    ]


@dataclass(frozen=True, eq=False)
class Predictions:
    """What E exits predict for N labels: one for each sample, token or pixel that counts.

    Attributes:
        blocks: the numbers of the blocks that predict, (E).
        classes: the predicted classes, (E, N) int64.
        confidence: the calibrated probabilities of these classes, (E, N).
        labels: the true classes, (N,) int64.
    """

    blocks: tuple[int, ...]
    classes: Tensor
    confidence: Tensor
    labels: Tensor

    @property
    def right(self) -> Tensor:
        """Whether each prediction is correct, (E, N) bool."""
        return self.classes == self.labels

    @property
    def agree(self) -> Tensor:
        """Whether all exits predict the same class, (N,) bool."""
        return (self.classes == self.classes[:1]).all(0)

    @property
    def agreement(self) -> Tensor:
        """The share of labels for which two exits predict the same class, (E, E) float64."""
        return torch.stack([(self.classes == of).double().mean(1) for of in self.classes])

    def taken(self, threshold: float) -> Tensor:
        """The first exit whose confidence reaches the threshold, otherwise the last: its position
        in `blocks`, (N,) int64.

        This is the decision of `EarlyExit` for a sample with one label.

        Raises:
            InputError: a threshold that is none.
        """
        enough = self.confidence >= checked_threshold("Predictions.taken", threshold)
        enough[-1] = True
        return enough.int().argmax(0)  # the first of several

    def at(self, threshold: float, flops: Sequence[float] | None = None) -> dict[str, Any]:
        """The results of deciding with a threshold.

        Args:
            threshold: the probability at which a label leaves.
            flops: of a sample that leaves at each exit, the heads on its way included.

        Returns:
            `threshold`, `accuracy` and `shares`, the share that leaves at each exit; with `flops`
            also their mean, `flops`.

        Raises:
            InputError: a threshold that is none; another number of `flops` than of exits.
        """
        count = len(self.blocks)
        if flops is not None and not (len(flops) == count and all(map(is_finite, flops))):
            raise InputError(
                f"Predictions.at(flops={shortened(flops)}): give a number for each of the {count} "
                "exits"
            )
        taken = self.taken(threshold)
        right = self.right.gather(0, taken[None])[0]
        shares = torch.bincount(taken, minlength=count).double() / len(taken)
        found = {"threshold": threshold, "accuracy": right.double().mean().item()}
        if flops is not None:
            found["flops"] = (shares @ torch.tensor(flops, dtype=torch.float64)).item()
        return {**found, "shares": shares.tolist()}


@torch.no_grad()
def predictions(
    rule: Rule,
    loader: Source,
    fabric: Fabric | None = None,
    temperatures: Sequence[float | None] | None = None,
) -> Predictions:
    """What every exit predicts, with calibrated probabilities, on the CPU.

    Args:
        rule: moved to the device, and put into eval mode.
        loader: the data: a loader, or batches as `data.Batches` reads them.
        fabric: device and precision; by default the rule's device, in 32 bits.
        temperatures: of every block's exit, as `fit_temperatures` gives them; by default all 1.

    Raises:
        InputError: the labels are not classes of the network's scores; none of them counts;
            temperatures that are none.
    """
    rule, loader, fabric = prepared(rule, loader, fabric, "predictions(loader)")
    names = rule.blocks.names
    classes: dict[int, list[Tensor]] = {}
    confidence: dict[int, list[Tensor]] = {}
    labels = []
    with fabric.autocast(), torch.random.fork_rng(devices=[]):
        for x, y in loader.epoch(0):
            exits = {k: z for k, z in enumerate(rule.exits(x)) if z is not None}
            temperatures = checked_temperatures("predictions", temperatures, names, exits)
            for k, z in exits.items():
                scores, _ = _counted(z, y)
                p, predicted = (scores / temperatures[k]).softmax(1).max(1)  # type: ignore[operator]
                classes.setdefault(k, []).append(predicted)
                confidence.setdefault(k, []).append(p)
            labels.append(_counted(exits[len(rule.blocks) - 1], y)[1])
    _refuse_none("predictions", sum(map(len, labels)))
    return Predictions(
        tuple(classes),
        torch.stack([torch.cat(of) for of in classes.values()]).cpu(),
        torch.stack([torch.cat(of) for of in confidence.values()]).cpu(),
        torch.cat(labels).cpu(),
    )


def _counted(scores: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Class scores (N, C), in single precision at least, and true classes (N,) of the labels that
    count."""
    classes, axis = classes_of(scores, y)
    z, true = scores.movedim(axis, -1).flatten(0, -2), classes.flatten()
    counts = true != IGNORED
    return z[counts].to(torch.promote_types(z.dtype, torch.float32)), true[counts]


def _refuse_none(call: str, labels: int) -> None:
    """Refuse data in which no label counts.

    Raises:
        InputError: there is none.
    """
    if not labels:
        raise InputError(
            f"{call}(loader): no label counts; give data with a label other than {IGNORED}"
        )
