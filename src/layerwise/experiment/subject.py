"""A run whose network is analyzed: which questions it can answer, and its answers."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from layerwise.analysis import (
    effective_rank,
    feedback_angles,
    gradient_alignment,
    information,
    label_correlation,
    linear_probe,
    linear_separability,
    memorization,
    pseudo_inverse_angles,
)
from layerwise.data import Augment, Loader, Text
from layerwise.data.splits import Part, labelled
from layerwise.errors import InputError
from layerwise.experiment.build import Experiment, build, tuples
from layerwise.experiment.config import config_of
from layerwise.experiment.observers import alignment_of, outcomes_of
from layerwise.experiment.questions import OF_CLASSES, OF_IMAGES
from layerwise.experiment.recorded_data import check_data
from layerwise.report.pictures import first_filters
from layerwise.rules.base import Rule
from layerwise.rules.families.feedback import FeedbackRule
from layerwise.runs.run import Run
from layerwise.trainer import fabric_for, load_evaluated, phase_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric

BATCH = 128


@dataclass(frozen=True)
class Subject:
    """A run whose network is analyzed.

    Attributes:
        run: the run.
        label: its name in tables and pictures.
        experiment: its data and network, with the weights of a checkpoint.
        epoch: epochs that the checkpoint had completed.
        fabric: device and precision.
        options: the options of `layerwise analyze`.
    """

    run: Run
    label: str
    experiment: Experiment
    epoch: int
    fabric: Fabric
    options: dict[str, Any]

    @classmethod
    def of(cls, run: Run, label: str, options: dict[str, Any]) -> Subject:
        """A run with the network of one of its checkpoints.

        Raises:
            InputError: no such checkpoint, split or device; files that cannot be read; data that
                changed since the run began.
        """
        state = run.checkpoint(options["checkpoint"])
        with run.readable():
            experiment = build(config_of(run), to_train=False)
        check_data(run, experiment.splits)
        fabric = fabric_for(options["device"], experiment.settings.precision)
        with run.loading(options["checkpoint"]):
            load_evaluated(experiment.rule, state)
        experiment.rule.to(fabric.device).eval()
        if getattr(experiment.splits, options["split"]) is None:
            raise InputError(
                f"--split {options['split']}: {run.path} has no such split; give test or train"
            )
        return cls(run, label, experiment, state["epoch"], fabric, options)

    def lacks(self, question: str) -> str | None:
        """Why the run cannot answer a question, and which runs can; None if it can."""
        path = self.run.path
        if question in OF_IMAGES and isinstance(self.experiment.splits.train, Text):
            return f"{path} was trained on a text; give a run on images"
        if question in OF_CLASSES and self.experiment.splits.real:
            return f"{path} was trained on labels that are real numbers; give a run on classes"
        if question == "memorization" and self.experiment.splits.relabelled is None:
            return f"{path} was trained on true labels; train one with --data.random_labels 1"
        if question == "difficulty" and self.outcomes is None:
            return (
                f"{path} did not record which images were right after each epoch; train one with "
                "--outcomes true"
            )
        if question == "filters" and first_filters(self.rule.blocks) is None:
            return (
                f"{path}: the first layer is no convolution of more than one pixel; give a run of "
                "a convolutional network"
            )
        if question == "feedback" and not isinstance(self.rule, FeedbackRule):
            return (
                f"{path}: {type(self.rule).__name__} has no feedback matrix; give a run of "
                "FeedbackAlignment, SignSymmetry or KolenPollack"
            )
        return None

    @property
    def rule(self) -> Rule:
        return self.experiment.rule

    @property
    def names(self) -> tuple[str, ...]:
        return self.rule.blocks.names

    @cached_property
    def train(self) -> Loader:
        """Training images without augmentation, shuffled."""
        return self._loader("train", shuffled=True)

    @cached_property
    def fitted(self) -> Loader:
        """The same images in order."""
        return self._loader("train", shuffled=False)

    @cached_property
    def held(self) -> Loader:
        """Samples of the split that is measured on, in order."""
        return self._loader(self.options["split"], shuffled=False)

    @property
    def samples(self) -> str:
        """Number and kind of the samples measured on."""
        name = self.experiment.splits.name
        within = f"{self.held.shape[0]} tokens of " if self.held.tokens else ""
        return f"{self.held.size} {self.held.unit} of {within}{name}"

    def same_samples_as(self, other: Subject) -> bool:
        """Whether both runs are measured on the same samples: equal names, numbers and labels."""
        pairs = zip(self.held.labels(0), other.held.labels(0), strict=True)
        return self.samples == other.samples and all(torch.equal(a, b) for a, b in pairs)

    def _loader(self, split: str, shuffled: bool) -> Loader:
        splits, config = self.experiment.splits, self.experiment.config
        part: Part = labelled(getattr(splits, split))
        generator = torch.Generator().manual_seed(self.options["seed"])
        # The same samples for every run. Drawn: a set may be sorted by class, and CKA needs batches
        # of all classes.
        chosen = torch.randperm(len(part), generator=generator)[: self.options["samples"] or None]
        part = part.subset(chosen)
        if not isinstance(part, Text):
            assert not isinstance(splits.train, Text)  # the parts of a set are of one kind
            part = part.normalized_by(splits.train)
        augment = Augment(**tuples(config["augment"]))
        kept = {name: getattr(augment, name) for name in ("normalize", "mean", "std")}
        return Loader(
            part,
            min(BATCH, len(chosen)),
            augment=Augment(**kept),
            train=shuffled,
            device=self.fabric.device,
            seed=self.options["seed"],
            channels_last=self.experiment.settings.channels_last is True,
        )

    def blocks(self, questions: Container[str]) -> list[dict[str, Any]]:
        """A row of numbers for every block, with the answers to these questions."""
        rows: list[dict[str, Any]] = [{"name": name} for name in self.names]

        def answer(question: str, find: Callable[[], dict[str, tuple[Any, ...]]]) -> None:
            if question in questions:
                for key, values in find().items():
                    for row, value in zip(rows, values, strict=True):
                        row[key] = value

        reads: dict[str, Any] = {k: self.options[k] for k in ("epochs", "seed")}
        pool = {"pool": self.options["pool"]}
        with self.fabric.autocast():
            answer(
                "probe",
                lambda: {"probe": linear_probe(self.rule, self.train, self.held, **reads, **pool)},
            )
            answer(
                "separability",
                lambda: {"separability": linear_separability(self.rule, self.fitted, **pool)},
            )
            answer("extent", self._extent)
            answer("correlation", self._correlation)
            answer("information", lambda: self._information(reads))
            answer("memorization", self._memorization)
            answer("alignment", self._alignment)
        return rows

    def _information(self, reads: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
        found = information(self.rule, self.train, self.held, **reads)
        return {
            "reconstruction": tuple(f.reconstruction for f in found),
            "label": tuple(f.label for f in found),
        }

    def _extent(self) -> dict[str, tuple[Any, ...]]:
        found = effective_rank(self.rule, self.held)
        return {key: tuple(getattr(f, key) for f in found) for key in ("rank", "norm", "knee")}

    def _correlation(self) -> dict[str, tuple[Any, ...]]:
        found = label_correlation(self.rule, self.held)
        return {
            "strongest": tuple(f.max().item() for f in found),
            "correlation": tuple(f.mean().item() for f in found),
        }

    def _memorization(self) -> dict[str, tuple[Any, ...]]:
        relabelled = self.experiment.splits.relabelled
        loader = self.experiment.loaders(self.fabric.device, evaluation=True)["train"]
        assert relabelled is not None
        assert loader is not None
        return {"memorized": memorization(self.rule, loader, relabelled)}

    def _alignment(self) -> dict[str, tuple[Any, ...]]:
        """On the first batch of the run's own training, augmented and in train mode."""
        loader = self.experiment.loaders(self.fabric.device)["train"]
        assert loader is not None
        x, y = next(loader.epoch(0))
        phases = self.rule.phases(self.experiment.settings.epochs)
        self.rule.begin(phase_of(self.epoch - 1, phases))  # of the last epoch completed
        self.rule.train()
        found = gradient_alignment(self.rule, x, y)
        self.rule.eval()
        return {
            "angle": tuple(None if a is None else a.angle for a in found),
            "ratio": tuple(None if a is None else a.ratio for a in found),
        }

    @property
    def feedback(self) -> list[dict[str, Any]]:
        """A row for every layer with a feedback matrix: its angles, in degrees."""
        inverse = pseudo_inverse_angles(self.rule)
        return [
            {"name": name, "to_weight": angle, "to_pseudo_inverse": inverse[name]}
            for name, angle in feedback_angles(self.rule).items()
        ]

    @cached_property
    def aligned(self) -> list[dict[str, Any]]:
        """Rows of alignment.jsonl; empty if the run has none."""
        return alignment_of(self.run, len(self.names))

    @cached_property
    def outcomes(self) -> tuple[Tensor, Tensor] | None:
        """Losses and whether each was right, both (epochs, N); None if the run has none."""
        return outcomes_of(self.run, len(self.experiment.splits.train))
