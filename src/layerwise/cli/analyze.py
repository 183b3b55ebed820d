"""`layerwise analyze`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table
from safetensors.torch import save

from layerwise.analysis import (
    Difficulty,
    cka,
    difficulty,
)
from layerwise.cli.console import console, output
from layerwise.cli.parser import Parser, tokens_of
from layerwise.data import Text
from layerwise.errors import InputError, choices
from layerwise.experiment.subject import OF_IMAGES, Subject
from layerwise.report.analysis_figures import (
    draw_alignment,
    draw_blocks,
    draw_cka,
    draw_difficulty,
    draw_feedback,
    draw_feedback_training,
)
from layerwise.runs.files import claim_numbered
from layerwise.runs.run import Run

QUESTIONS = {
    "alignment": "angle and ratio of norms to backpropagation's gradient",
    "probe": "accuracy of a linear classifier on each block's output",
    "separability": "share of the training images that a linear classifier can fit there",
    "information": "what each block still tells of the image and of the label",
    "extent": "in how many dimensions what each block gives lies, and how large it is",
    "cka": "how alike blocks are, in a run and between the first run and the others",
    "memorization": "share of random labels that is known by heart (--data.random_labels)",
    "feedback": "angle between the way back and the weights (FeedbackAlignment and its like)",
    "difficulty": "which training images were learned late or forgotten (--outcomes true)",
}

OF_TEXT = [question for question in QUESTIONS if question not in OF_IMAGES]


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
        help="null: of each run all that it can answer, of one on a text "
        f"{', '.join(OF_TEXT)}; else any of these. {asked}",
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
        help="how many images of a split, or windows of a text, are looked at, drawn at random; 0 "
        "for all",
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
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn, and of the probes")
    parser.add_argument("--device", type=str, default="auto", help="as in `layerwise train`")
    found = parser.read(tokens_of(arguments, positional=True))
    _check(found)
    runs = [Run.open(path) for path in found["runs"]]
    names = [run.path.name for run in runs]
    labels = names if len(set(names)) == len(names) else [str(run.path) for run in runs]
    if len(set(labels)) < len(labels):
        raise InputError(f"analyze {' '.join(found['runs'])}: give every run once")
    subjects = [Subject.of(run, label, found) for run, label in zip(runs, labels, strict=True)]
    _report(subjects, _answered(subjects, found["questions"]))


def _answered(subjects: list[Subject], named: list[str] | None) -> dict[str, list[str]]:
    """Of each run's label the questions that it answers; of `named` ones a line tells which runs
    are left out.

    Raises:
        InputError: a question is named that no run can answer.
    """
    answered: dict[str, list[str]] = {subject.label: [] for subject in subjects}
    for question in named or QUESTIONS:
        lacking = {s.label: why for s in subjects if (why := s.lacks(question)) is not None}
        if named and len(lacking) == len(subjects):
            raise InputError(f"--questions {question}: {lacking[subjects[0].label]}")
        for label, of_run in answered.items():
            if label not in lacking:
                of_run.append(question)
            elif named:
                console.print(f"left out of {question}: {lacking[label]}", soft_wrap=True)
    return answered


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
    if options["samples"] == 1:
        raise InputError("--samples 1: one sample has no spread; give 2 or more, or 0 for all")


def _report(subjects: list[Subject], questions: Mapping[str, Sequence[str]]) -> None:
    """Find the answers to each run's questions, write them, print them."""
    first = subjects[0]

    def answers(question: str, find: Callable[[Subject], Any], none: Any) -> dict[str, Any]:
        return {s.label: find(s) if question in questions[s.label] else none for s in subjects}

    rows = {subject.label: subject.blocks(questions[subject.label]) for subject in subjects}
    similar = _cka(subjects) if "cka" in questions[first.label] else []
    aligned = answers("alignment", lambda s: s.aligned, [])
    hard = answers("difficulty", lambda s: s.outcomes, None)
    back = answers("feedback", lambda s: s.feedback, [])
    back_in_training = answers("feedback", lambda s: s.aligned, [])
    learned = {label: difficulty(o[1]) for label, o in hard.items() if o is not None}
    result = {
        "runs": [
            {
                "run": str(subject.run.path),
                "checkpoint": subject.options["checkpoint"],
                "epoch": subject.epoch,
                "blocks": rows[subject.label],
                "feedback": back[subject.label],
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
        s.label: {"consistency": d.consistency.tolist(), "forgotten": d.forgotten.tolist()}
        if (d := learned.get(s.label))
        else None
        for s in subjects
    }
    epochs = {label: len(o[1]) for label, o in hard.items() if o is not None}
    files: dict[str, bytes | None] = {
        "analysis.json": json.dumps(_finite(result), indent=1).encode(),
        "blocks.png": draw_blocks(rows, of_blocks),
        "alignment.png": draw_alignment(aligned, of_blocks),
        "feedback.png": draw_feedback(_finite(back)),
        "feedback-training.png": draw_feedback_training(back_in_training),
        "cka.png": draw_cka(_finite(similar)),
        "difficulty.png": draw_difficulty(lists, epochs),
    }
    for label, d in learned.items():
        outcomes = hard[label]
        assert outcomes is not None
        (train,) = (s.experiment.splits.train for s in subjects if s.label == label)
        assert not isinstance(train, Text)  # of which there are no outcomes
        tensors = {"losses": outcomes[0].mean(0), "labels": train.labels, **vars(d)}
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
        for table in _tables(subject, rows[subject.label], back[subject.label]):
            output.print(table)
        if about := _summary(learned.get(subject.label)):
            output.print(f"{subject.label}: {_in_words(about)}", soft_wrap=True)
    output.print(f"{folder}: {', '.join(written)}", soft_wrap=True)


def _cka(subjects: list[Subject]) -> list[dict[str, Any]]:
    """Of every run with itself, and of the first with every other on the same data."""
    first = subjects[0]
    pairs = [(s, s) for s in subjects] + [(first, s) for s in subjects[1:]]
    tables = []
    for a, b in pairs:
        if not a.same_samples_as(b):
            differ = f"whose samples or labels differ ({a.samples}; {b.samples})"
            console.print(f"left out of cka: {a.label} beside {b.label}, {differ}", soft_wrap=True)
            continue
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
    "what each block gives": {
        "effective rank": ("rank", 1, 1),
        "mean norm": ("norm", 1, 1),
    },
    "random labels that are known by heart": {"memorized, %": ("memorized", 100, 1)},
    "the gradient, beside backpropagation's": {
        "angle, degrees": ("angle", 1, 1),
        "ratio of norms": ("ratio", 1, 3),
    },
}


OF_LAYERS = {
    "to the weight": ("to_weight", 1, 1),
    "to its pseudo-inverse": ("to_pseudo_inverse", 1, 1),
}


def _tables(
    subject: Subject, rows: list[dict[str, Any]], layers: list[dict[str, Any]]
) -> list[Table]:
    title = f"{subject.label}, epoch {subject.epoch}: "
    tables = [_table(title + about, "block", rows, columns) for about, columns in TABLES.items()]
    tables.append(_table(f"{title}the way back, in degrees", "layer", layers, OF_LAYERS))
    return [table for table in tables if table is not None]


def _table(
    title: str, of: str, rows: list[dict[str, Any]], columns: dict[str, tuple[str, int, int]]
) -> Table | None:
    """None where nothing in it is known."""
    known = {name: column for name, column in columns.items() if rows and column[0] in rows[0]}
    if not known:
        return None
    table = Table(title=title)
    table.add_column(of)
    for name in known:
        table.add_column(name, justify="right")
    for i, row in enumerate(rows):
        cells = [
            "" if row[key] is None else f"{factor * row[key]:.{digits}f}"
            for key, factor, digits in known.values()
        ]
        table.add_row(f"{i} {row['name']}", *cells)
    return table
