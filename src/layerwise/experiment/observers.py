"""What a training records besides its metrics: loggers, alignment, outcomes, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from layerwise.analysis import feedback_angles, gradient_alignment
from layerwise.analysis.exits import sample_outcomes
from layerwise.data import Augment, Loader, Text
from layerwise.errors import InputError, reason
from layerwise.experiment.build import Experiment, tuples
from layerwise.experiment.prepared import Prepared
from layerwise.report.pictures import Pictures
from layerwise.rules.base import Rule, Scale
from layerwise.rules.families.feedback import FeedbackRule
from layerwise.runs.checksum import load_checked, save_checked
from layerwise.runs.rows import finite
from layerwise.runs.run import ALIGNMENT, OUTCOMES, Run
from layerwise.trainer import Observer

PICTURED = 8  # images


def observers_of(prepared: Prepared, run: Run, receivers: Sequence[Any]) -> list[Observer]:
    """The observers that a config asks for, in the order of their writes.

    Args:
        prepared: the training.
        run: where they write.
        receivers: open loggers; each takes rows of metrics and images.
    """
    settings = prepared.experiment.settings
    found: list[Observer] = []
    if settings.alignment_every:
        found.append(AlignmentRecorder(run, settings.alignment_every))
    if run.writes and settings.outcomes:
        found.append(OutcomesRecorder(prepared, run))
    if receivers:
        found.append(MetricsLogger(receivers))
    if run.writes and settings.pictures:
        pictures = _pictures(prepared.experiment, prepared.fabric.device, run, receivers)
        if pictures is not None:
            found.append(PicturesRecorder(pictures, settings.pictures, settings.epochs))
    return found


class AlignmentRecorder(Observer):
    """Adds a row with every block's angle, degrees, and ratio of norms to alignment.jsonl; for a
    rule with feedback matrices also the angle of each to its weight.

    Args:
        run: where the file is.
        every: steps between two rows.
    """

    def __init__(self, run: Run, every: int):
        self.run, self.every = run, every

    def due(self, step: int) -> bool:
        return step % self.every == 0

    def before_step(self, step: int, rule: Rule, *, x: Tensor, y: Tensor, scale: Scale) -> None:
        found = gradient_alignment(rule, x, y, scale=scale)
        row: dict[str, Any] = {
            "step": step,
            "angle": [None if a is None else a.angle for a in found],
            "ratio": [None if a is None else a.ratio for a in found],
        }
        if isinstance(rule, FeedbackRule):
            row["feedback"] = feedback_angles(rule)
        self.run.add_line(ALIGNMENT, finite(row))


def alignment_of(run: Run, blocks: int) -> list[dict[str, Any]]:
    """The rows that `AlignmentRecorder` wrote; empty if the run has none.

    Args:
        run: the run.
        blocks: number of its blocks.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    found = run.lines(ALIGNMENT)
    for row in found:
        feedback = row.get("feedback", {})
        lists = [row.get("angle"), row.get("ratio")]
        if (
            type(row.get("step")) is not int
            or not all(isinstance(one, list) and len(one) == blocks for one in lists)
            or not isinstance(feedback, dict)
            or not all(_is_number(v) for v in [*row["angle"], *row["ratio"], *feedback.values()])
        ):
            raise InputError(
                f"run {run.path}: {ALIGNMENT} holds rows of another kind; it needs step, and angle "
                f"and ratio of {blocks} blocks: put the file back, or remove it"
            )
    return found


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


class OutcomesRecorder(Observer):
    """Writes the loss on every training image, and whether it was right, after each epoch.

    Args:
        prepared: the training.
        run: where the files go.
    """

    def __init__(self, prepared: Prepared, run: Run):
        self.run, self.fabric = run, prepared.fabric
        loader = prepared.experiment.loaders(self.fabric.device, evaluation=True)["train"]
        assert loader is not None
        self.loader = loader

    def before_checkpoint(self, epoch: int, rule: Rule) -> None:
        # Before: an epoch whose checkpoint exists is not trained again after a crash.
        losses, right = sample_outcomes(rule, self.loader, self.fabric)
        content = save_checked({"losses": losses, "right": right})
        self.run.write(f"{OUTCOMES}/epoch-{epoch:03d}.safetensors", content)


def outcomes_of(run: Run, count: int) -> tuple[Tensor, Tensor] | None:
    """What `OutcomesRecorder` wrote: losses and whether each was right, both (epochs, N); None if
    the run has none.

    Args:
        run: the run.
        count: number of its training images.

    Raises:
        InputError: files are missing, cannot be read, or are of other data.
    """
    paths = run.outcomes()
    if not paths:
        return None
    lacking = sorted({*range(1, max(paths) + 1)} - paths.keys()) if max(paths) < 1e6 else [1]
    where = f"run {run.path}: {OUTCOMES}"
    if lacking:
        raise InputError(
            f"{where} lacks the file of epoch {lacking[0]}, without which nobody can tell what "
            "was forgotten; put it back"
        )
    try:
        files = [load_checked(path) for path in paths.values()]
        losses, right = (torch.stack([f[k] for f in files]) for k in ("losses", "right"))
    except (OSError, KeyError, RuntimeError, ValueError, SafetensorError) as error:
        raise InputError(f"{where} cannot be read: {reason(error)}") from error
    of_set = right.shape == losses.shape == (len(files), count)
    if not of_set or right.dtype != torch.bool or not losses.is_floating_point():
        raise InputError(
            f"{where} are of other data: shape {tuple(right.shape)}, {right.dtype}, and not "
            f"one for each of {count} training images after every epoch; restore the "
            "run's own files"
        )
    return losses, right


class MetricsLogger(Observer):
    """Sends each epoch's metrics to loggers.

    Args:
        receivers: open loggers.
    """

    def __init__(self, receivers: Sequence[Any]):
        self.receivers = receivers

    def after_epoch(self, epoch: int, rule: Rule, row: Mapping[str, float | int | None]) -> None:
        for receiver in self.receivers:
            receiver.log(row)


class PicturesRecorder(Observer):
    """Draws pictures after the first and the last epoch, and regularly in between.

    Args:
        pictures: draws and writes those of one epoch.
        every: epochs between pictures.
        epochs: of the whole training.
    """

    def __init__(self, pictures: Pictures, every: int, epochs: int):
        self.pictures, self.every, self.epochs = pictures, every, epochs

    def after_epoch(self, epoch: int, rule: Rule, row: Mapping[str, float | int | None]) -> None:
        if epoch % self.every == 0 or epoch in (1, self.epochs):
            self.pictures(epoch, rule)


def _pictures(
    experiment: Experiment, device: torch.device, run: Run, receivers: Sequence[Any]
) -> Pictures | None:
    """Pictures of some images that do not train the network if the data has a validation split;
    None for a text."""
    train, validation = experiment.splits.train, experiment.splits.validation
    part = train if validation is None else validation
    if isinstance(train, Text) or isinstance(part, Text):
        return None
    # Spread over the split, which may be sorted by class.
    part = part.subset(torch.linspace(0, len(part) - 1, PICTURED).long().unique())
    loader = Loader(
        part.normalized_by(train),
        len(part),
        augment=Augment(**tuples(experiment.config["augment"])),
        train=False,
        device=device,
        channels_last=experiment.settings.channels_last is True,
    )
    [(x, y)] = loader.epoch(0)
    return Pictures(x, y, loader.denormalize, run.write, [to.log_image for to in receivers])
