"""`layerwise analyze`."""

from __future__ import annotations

import bisect
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from layerwise.analysis import (
    Difficulty,
    cka,
    difficulty,
    gradient_alignment,
    information,
    linear_probe,
    linear_separability,
    memorization,
)
from layerwise.cli.parser import Parser, tokens_of
from layerwise.console import output
from layerwise.data import Augment, Images, Loader, Stream, Text
from layerwise.errors import InputError, choices, reason
from layerwise.experiment import Experiment, build, tuples
from layerwise.report.analysis import draw_alignment, draw_blocks, draw_cka, draw_difficulty
from layerwise.rule import Rule
from layerwise.run import ALIGNMENT, OUTCOMES, Run, claim_numbered
from layerwise.trainer import fabric_for, load_evaluated

QUESTIONS = {
    "alignment": "angle and ratio of norms to backpropagation's gradient",
    "probe": "accuracy of a linear classifier on each block's output",
    "separability": "share of the training images that a linear classifier can fit there",
    "information": "what each block still tells of the image and of the label",
    "cka": "how alike blocks are, in a run and between the first run and the others",
    "memorization": "share of random labels that is known by heart (--data.random_labels)",
    "difficulty": "which training images were learned late or forgotten (--outcomes true)",
}
BATCH = 128


@dataclass(frozen=True)
class Subject:
    """A run whose network is looked at."""

    run: Run
    label: str
    experiment: Experiment
    epoch: int
    fabric: Fabric
    options: dict[str, Any]

    @classmethod
    def of(cls, run: Run, label: str, options: dict[str, Any]) -> Subject:
        """The network as it stands in a checkpoint.

        Raises:
            InputError: no such checkpoint, split or device; files that cannot be read.
        """
        state = run.checkpoint(options["checkpoint"])
        with run.readable():
            experiment = build(run.config)
        if isinstance(experiment.splits.train, Text):
            raise InputError(f"{run.path}: trained on a text; analyze takes runs on images")
        fabric = fabric_for(options["device"], experiment.settings.precision)
        load_evaluated(experiment.rule, state)
        experiment.rule.to(fabric.device).eval()
        if getattr(experiment.splits, options["split"]) is None:
            raise InputError(
                f"--split {options['split']}: {run.path} has no such split; give test or train"
            )
        return cls(run, label, experiment, state["epoch"], fabric, options)

    def check(self, questions: list[str]) -> None:
        """Refuse questions that the run has nothing to say to."""
        if "memorization" in questions and self.experiment.splits.relabelled is None:
            raise InputError(
                f"--questions memorization: {self.run.path} was trained on true labels; train one "
                "with --data.random_labels 1"
            )
        if "difficulty" in questions and self.outcomes is None:
            raise InputError(
                f"--questions difficulty: {self.run.path} did not keep what was right after each "
                "epoch; train one with --outcomes true"
            )

    @property
    def rule(self) -> Rule:
        return self.experiment.rule

    @property
    def names(self) -> tuple[str, ...]:
        return self.rule.blocks.names

    @cached_property
    def train(self) -> Loader:
        """Training images, shuffled, as they are."""
        return self._loader("train", shuffled=True)

    @cached_property
    def fitted(self) -> Loader:
        """The same images, all of them and in order."""
        return self._loader("train", shuffled=False)

    @cached_property
    def held(self) -> Loader:
        """The images of the split that is measured on."""
        return self._loader(self.options["split"], shuffled=False)

    def _loader(self, split: str, shuffled: bool) -> Loader:
        splits, config = self.experiment.splits, self.experiment.config
        part: Images | Stream = getattr(splits, split)
        assert not isinstance(splits.train, Text)  # refused by `of`
        generator = torch.Generator().manual_seed(self.options["seed"])
        # The same images for every run; a set may be sorted by class, and CKA wants mixed batches.
        chosen = torch.randperm(len(part), generator=generator)[: self.options["samples"] or None]
        augment = Augment(**tuples(config["augment"]))
        kept = {name: getattr(augment, name) for name in ("normalize", "mean", "std")}
        return Loader(
            part.subset(chosen).normalized_by(splits.train),
            min(BATCH, len(chosen)),
            augment=Augment(**kept),
            train=shuffled,
            device=self.fabric.device,
            seed=self.options["seed"],
            channels_last=self.experiment.settings.channels_last,
        )

    def blocks(self, questions: list[str]) -> list[dict[str, Any]]:
        """A row of numbers for every block."""
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

    def _memorization(self) -> dict[str, tuple[Any, ...]]:
        relabelled = self.experiment.splits.relabelled
        if relabelled is None:
            return {}
        loader = self.experiment.loaders(self.fabric.device, evaluation=True)["train"]
        assert loader is not None
        return {"memorized": memorization(self.rule, loader, relabelled)}

    def _alignment(self) -> dict[str, tuple[Any, ...]]:
        """On the first batch of the run's own training, augmented and in train mode."""
        loader = self.experiment.loaders(self.fabric.device)["train"]
        assert loader is not None
        x, y = next(loader.epoch(0))
        phases = self.rule.phases(self.experiment.settings.epochs)
        ends = list(itertools.accumulate(phases))
        self.rule.begin(min(bisect.bisect_left(ends, self.epoch), len(ends) - 1))
        self.rule.train()
        found = gradient_alignment(self.rule, x, y)
        self.rule.eval()
        return {
            "angle": tuple(None if a is None else a.angle for a in found),
            "ratio": tuple(None if a is None else a.ratio for a in found),
        }

    @cached_property
    def outcomes(self) -> tuple[Tensor, Tensor] | None:
        """Losses and whether each was right, both (epochs, N); None where the run kept none."""
        paths = sorted((self.run.path / OUTCOMES).glob("epoch-*.safetensors"))
        if not paths:
            return None
        try:
            files = [load_file(path) for path in paths]
            return tuple(torch.stack([f[k] for f in files]) for k in ("losses", "right"))  # type: ignore[return-value]
        except (OSError, KeyError, RuntimeError, SafetensorError) as error:
            raise InputError(
                f"run {self.run.path}: {OUTCOMES} cannot be read: {reason(error)}"
            ) from error


def main(arguments: list[str]) -> None:
    """What the networks of runs have learned, block by block: numbers as JSON and pictures as PNG,
    in a new folder analysis-N of the first run."""
    parser = Parser(prog="layerwise analyze", description=main.__doc__)
    parser.add_argument("runs", type=str, nargs="+", help="run folders")
    asked = "; ".join(f"{name}: {what}" for name, what in QUESTIONS.items())
    parser.add_argument(
        "--questions",
        type=list[str] | None,
        default=None,
        help=f"null: all that the runs can answer; else any of these. {asked}",
    )
    parser.add_argument(
        "--checkpoint",
        type=str,
        default="last",
        help="last, or best (the best epoch on the validation split)",
    )
    parser.add_argument(
        "--split", type=str, default="test", help="what is measured on: test, validation or train"
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=2000,
        help="how many images of a split are looked at, drawn at random; 0 for all",
    )
    parser.add_argument(
        "--epochs", type=int, default=10, help="for which probes, classifiers and decoders train"
    )
    parser.add_argument(
        "--pool",
        type=int | None,
        default=2,
        help="probes and separability: average feature maps down to pool x pool; null keeps all",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the images and of the probes")
    parser.add_argument("--device", type=str, default="auto", help="as in `layerwise train`")
    found = parser.read(tokens_of(arguments, positional=True))
    _check(found)
    runs = [Run.open(path) for path in found["runs"]]
    names = [run.path.name for run in runs]
    labels = names if len(set(names)) == len(names) else [str(run.path) for run in runs]
    if len(set(labels)) < len(labels):
        raise InputError(f"analyze {' '.join(found['runs'])}: give every run once")
    subjects = [Subject.of(run, label, found) for run, label in zip(runs, labels, strict=True)]
    for subject in subjects if found["questions"] else ():
        subject.check(found["questions"])
    _report(subjects, found["questions"] or list(QUESTIONS))


def _check(options: dict[str, Any]) -> None:
    for question in options["questions"] or ():
        if question not in QUESTIONS:
            raise InputError(
                f"--questions {question}: no such question; {choices(question, QUESTIONS)}"
            )
    if options["questions"] == []:
        raise InputError(f"--questions []: give any of {', '.join(QUESTIONS)}")
    if options["split"] not in ("test", "validation", "train"):
        raise InputError(f"--split {options['split']}: give test, validation or train")
    for name, least in (("samples", 0), ("epochs", 1), ("pool", 1), ("seed", 0)):
        if options[name] is not None and options[name] < least:
            raise InputError(f"--{name} {options[name]}: give {least} or more")


def _report(subjects: list[Subject], questions: list[str]) -> None:
    """Find the answers, write them, print them."""
    first = subjects[0]
    rows = {subject.label: subject.blocks(questions) for subject in subjects}
    similar = _cka(subjects) if "cka" in questions else []
    aligned = {
        s.label: s.run.lines(ALIGNMENT) if "alignment" in questions else [] for s in subjects
    }
    hard = {s.label: s.outcomes if "difficulty" in questions else None for s in subjects}
    learned = {label: difficulty(o[1]) for label, o in hard.items() if o is not None}
    result = {
        "runs": [
            {
                "run": str(subject.run.path),
                "checkpoint": subject.options["checkpoint"],
                "epoch": subject.epoch,
                "blocks": rows[subject.label],
                "difficulty": _summary(learned.get(subject.label)),
            }
            for subject in subjects
        ],
        "cka": similar,
        "data": first.experiment.splits.name,
        **{key: first.options[key] for key in ("split", "samples", "epochs", "pool", "seed")},
    }
    same = len({subject.names for subject in subjects}) == 1
    of_blocks = first.names if same else None
    lists = {
        label: {"consistency": d.consistency.tolist(), "forgotten": d.forgotten.tolist()}
        for label, d in learned.items()
    }
    epochs = {label: len(o[1]) for label, o in hard.items() if o is not None}
    files: dict[str, bytes | None] = {
        "analysis.json": json.dumps(_finite(result), indent=1).encode(),
        "blocks.png": draw_blocks(rows, of_blocks),
        "alignment.png": draw_alignment(aligned, of_blocks),
        "cka.png": draw_cka(_finite(similar)),
        "difficulty.png": draw_difficulty(lists, epochs),
    }
    for label, d in learned.items():
        outcomes = hard[label]
        assert outcomes is not None
        tensors = {"losses": outcomes[0].mean(0), **vars(d)}
        name = "difficulty" if len(learned) == 1 else f"difficulty-{label.replace('/', '-')}"
        files[f"{name}.safetensors"] = save(tensors)
    written = {name: content for name, content in files.items() if content is not None}
    try:
        folder = claim_numbered(first.run.path, "analysis")
    except OSError as error:
        raise InputError(f"cannot write in {first.run.path}: {error.strerror}") from error
    for name, content in written.items():
        first.run.write(f"{folder.name}/{name}", content)
    for subject in subjects:
        for table in _tables(subject, rows[subject.label]):
            output.print(table)
        if about := _summary(learned.get(subject.label)):
            output.print(f"{subject.label}: {_in_words(about)}", soft_wrap=True)
    output.print(f"{folder}: {', '.join(written)}", soft_wrap=True)


def _cka(subjects: list[Subject]) -> list[dict[str, Any]]:
    """Of every run with itself, and of the first with every other."""
    first = subjects[0]
    pairs = [(s, s) for s in subjects] + [(first, s) for s in subjects[1:]]
    tables = []
    for a, b in pairs:
        if a.experiment.splits.name != b.experiment.splits.name or a.held.size != b.held.size:
            raise InputError(
                f"--questions cka: {a.label} and {b.label} were trained on different data "
                f"({a.experiment.splits.name}, {b.experiment.splits.name}); leave cka out, or one "
                "of the runs"
            )
        with a.fabric.autocast():
            values = cka(a.rule, b.rule, a.held, b.held).tolist()
        tables.append(
            {
                "rows": a.label,
                "columns": b.label,
                "row_names": a.names,
                "column_names": b.names,
                "values": values,
            }
        )
    return tables


def _summary(found: Difficulty | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "samples": len(found.learned),
        "never_learned": int((~found.learned).sum()),
        "forgotten": int((found.forgotten > 0).sum()),
        "unforgettable": int(found.unforgettable.sum()),
        "consistency": found.consistency.mean().item(),
    }


def _in_words(about: dict[str, Any]) -> str:
    return (
        f"of {about['samples']:,} training images {about['unforgettable']:,} were learned and "
        f"never forgotten, {about['forgotten']:,} forgotten once or more, "
        f"{about['never_learned']:,} never learned; "
        f"they were right after {100 * about['consistency']:.1f} % of the epochs"
    )


def _finite(value: Any) -> Any:
    """The same with None for what is not a number, which JSON has not."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


# Tables of a few columns, for narrow terminals: title -> column -> key, factor, digits.
TABLES = {
    "a linear classifier on each block's output": {
        "probe, %": ("probe", 100, 1),
        "separable, %": ("separability", 100, 1),
    },
    "what each block tells of image and label": {
        "image loss, nats": ("reconstruction", 1, 3),
        "label, nats": ("label", 1, 2),
    },
    "random labels that are known by heart": {"memorized, %": ("memorized", 100, 1)},
    "the gradient, beside backpropagation's": {
        "angle, degrees": ("angle", 1, 1),
        "ratio of norms": ("ratio", 1, 3),
    },
}


def _tables(subject: Subject, rows: list[dict[str, Any]]) -> list[Table]:
    tables = []
    for title, columns in TABLES.items():
        known = {name: of for name, of in columns.items() if of[0] in rows[0]}
        if not known:
            continue
        table = Table(title=f"{subject.label}, epoch {subject.epoch}: {title}")
        table.add_column("block")
        for name in known:
            table.add_column(name, justify="right")
        for i, row in enumerate(rows):
            cells = [
                "" if row[key] is None else f"{factor * row[key]:.{digits}f}"
                for key, factor, digits in known.values()
            ]
            table.add_row(f"{i} {row['name']}", *cells)
        tables.append(table)
    return tables
