"""The answers of runs to questions about their networks: numbers, pictures and files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import save

from layerwise.analysis import Difficulty, cka, difficulty
from layerwise.data import Text
from layerwise.errors import InputError
from layerwise.experiment.questions import QUESTIONS
from layerwise.experiment.recorded_data import about_scores
from layerwise.experiment.subject import Subject
from layerwise.report.analysis_figures import (
    draw_alignment,
    draw_blocks,
    draw_cka,
    draw_difficulty,
    draw_feedback,
    draw_feedback_training,
)
from layerwise.report.pictures import as_png, draw_filters, one_below_another
from layerwise.runs.files import claim_numbered
from layerwise.runs.rows import finite

Row = dict[str, Any]


def answered_by(
    subjects: Sequence[Subject], named: Sequence[str] | None
) -> tuple[dict[str, list[str]], list[str]]:
    """Which run answers which questions.

    Args:
        subjects: the runs.
        named: questions; None for all.

    Returns:
        Each run's label with the questions that it answers; and for every named question that a run
        cannot answer, a sentence that says why.

    Raises:
        InputError: no run can answer a question that is named.
    """
    answered: dict[str, list[str]] = {subject.label: [] for subject in subjects}
    left_out = []
    for question in named or QUESTIONS:
        lacking = {s.label: why for s in subjects if (why := s.lacks(question)) is not None}
        if named and len(lacking) == len(subjects):
            raise InputError(f"--questions {question}: {lacking[subjects[0].label]}")
        for label, of_run in answered.items():
            if label not in lacking:
                of_run.append(question)
            elif named:
                left_out.append(f"left out of {question}: {lacking[label]}")
    return answered, left_out


@dataclass(frozen=True)
class Findings:
    """What runs answered.

    Args:
        subjects: the runs; files are written into the first.
        questions: each run's label -> the questions that it answers.

    Attributes:
        blocks: each run's label -> a row of numbers per block.
        feedback: each run's label -> a row per layer with a feedback matrix.
        cka: a table of similarities of each run with itself, and of the first with each other.
        left_out: a sentence for each pair of runs whose similarity cannot be measured.
    """

    subjects: Sequence[Subject]
    questions: Mapping[str, Sequence[str]]
    blocks: dict[str, list[Row]] = field(init=False, default_factory=dict)
    feedback: dict[str, list[Row]] = field(init=False, default_factory=dict)
    cka: list[Row] = field(init=False, default_factory=list)
    left_out: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        for subject in self.subjects:
            self.blocks[subject.label] = subject.blocks(self.questions[subject.label])
        if "cka" in self.questions[self.subjects[0].label]:
            self._compare()
        for subject in self.subjects:
            asked = self._asks(subject, "feedback")
            self.feedback[subject.label] = subject.feedback if asked else []

    def _asks(self, subject: Subject, question: str) -> bool:
        return question in self.questions[subject.label]

    def _compare(self) -> None:
        first = self.subjects[0]
        pairs = [(s, s) for s in self.subjects] + [(first, s) for s in self.subjects[1:]]
        for a, b in pairs:
            if not a.same_samples_as(b):
                self.left_out.append(
                    f"left out of cka: {a.label} and {b.label}, whose samples or labels differ "
                    f"({a.samples}; {b.samples})"
                )
                continue
            with a.fabric.autocast():
                values = cka(a.rule, b.rule, a.held, b.held).tolist()
            names = {"row_names": a.names, "column_names": b.names}
            self.cka.append({"rows": a.label, "columns": b.label, **names, "values": values})

    @cached_property
    def difficulty(self) -> dict[str, Difficulty]:
        """The label of each run that answers this question -> its training images' difficulty."""
        found = {}
        for subject in self.subjects:
            if self._asks(subject, "difficulty") and subject.outcomes is not None:
                found[subject.label] = difficulty(subject.outcomes[1])
        return found

    def summary_of_difficulty(self, label: str) -> Row | None:
        """Counts of training images that were learned and forgotten; None if a run does not answer
        this question."""
        found = self.difficulty.get(label)
        if found is None:
            return None
        return {
            "samples": len(found.learned),
            "never_learned": int((~found.learned).sum()),
            "forgotten": int((found.forgotten > 0).sum()),
            "unforgettable": int(found.unforgettable.sum()),
            "consistency": found.consistency.mean().item(),
        }

    def as_dict(self) -> dict[str, Any]:
        """All numbers, for a JSON file: None where one is not finite, which JSON lacks."""
        first = self.subjects[0]
        found = {
            "runs": [
                {
                    "run": str(subject.run.path),
                    "checkpoint": subject.options["checkpoint"],
                    "epoch": subject.epoch,
                    "blocks": self.blocks[subject.label],
                    "feedback": self.feedback[subject.label],
                    "difficulty": self.summary_of_difficulty(subject.label),
                }
                for subject in self.subjects
            ],
            "cka": self.cka,
            "data": first.experiment.splits.name,
            **{key: first.options[key] for key in ("split", "samples", "epochs", "pool", "seed")},
        }
        return finite(found)

    def write(self) -> tuple[Path, list[str]]:
        """Write numbers and pictures into a new folder analysis-N of the first run.

        Returns:
            The folder, and the names of the files in it.

        Raises:
            InputError: the folder cannot be written.
        """
        run, files = self.subjects[0].run, self._files()
        try:
            folder = claim_numbered(run.path, "analysis")
        except OSError as error:
            raise InputError(f"cannot write in {run.path}: {error.strerror}") from error
        for name, content in files.items():
            run.write(f"{folder.name}/{name}", content)
        return folder, list(files)

    def _files(self) -> dict[str, bytes]:
        first = self.subjects[0]
        same = len({subject.names for subject in self.subjects}) == 1
        names = first.names if same else None
        aligned = {s.label: s.aligned if self._asks(s, "alignment") else [] for s in self.subjects}
        feedback_in_training = {
            s.label: s.aligned if self._asks(s, "feedback") else [] for s in self.subjects
        }
        found: dict[str, bytes | None] = {
            "analysis.json": json.dumps(self.as_dict(), indent=1).encode(),
            "blocks.png": draw_blocks(self.blocks, names),
            "alignment.png": draw_alignment(aligned, names),
            "feedback.png": draw_feedback(finite(self.feedback)),
            "feedback-training.png": draw_feedback_training(feedback_in_training),
            "cka.png": draw_cka(finite(self.cka)),
            "filters.png": self._filters(),
            "difficulty.png": self._picture_of_difficulty(),
        }
        return {k: v for k, v in found.items() if v is not None} | self._tensors_of_difficulty()

    def _filters(self) -> bytes | None:
        """The first layers' filters, a row of pictures per run."""
        drawn = [
            draw_filters(s.rule.blocks, f"{s.label}, epoch {s.epoch}: filters of the first layer")
            for s in self.subjects
            if self._asks(s, "filters")
        ]
        known = [picture for picture in drawn if picture is not None]
        return as_png(one_below_another(known)) if known else None

    def _picture_of_difficulty(self) -> bytes | None:
        found = self.difficulty
        lists = {
            s.label: {"consistency": d.consistency.tolist(), "forgotten": d.forgotten.tolist()}
            if (d := found.get(s.label))
            else None
            for s in self.subjects
        }
        epochs = {s.label: len(s.outcomes[1]) for s in self.subjects if s.outcomes is not None}
        return draw_difficulty(lists, {label: epochs[label] for label in found})

    def _tensors_of_difficulty(self) -> dict[str, bytes]:
        """A file per run with the difficulty of every training image, which orders a curriculum."""
        files = {}
        for subject in self.subjects:
            found = self.difficulty.get(subject.label)
            if found is None:
                continue
            outcomes, train = subject.outcomes, subject.experiment.splits.train
            assert outcomes is not None
            assert not isinstance(train, Text)  # texts have no outcomes
            tensors = {"losses": outcomes[0].mean(0), "labels": train.labels, **vars(found)}
            alone = len(self.difficulty) == 1
            name = "difficulty" if alone else f"difficulty-{subject.label.replace('/', '-')}"
            about = about_scores(subject.experiment.splits, "train")
            files[f"{name}.safetensors"] = save(tensors, about)
        return files
