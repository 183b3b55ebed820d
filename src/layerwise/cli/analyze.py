"""`layerwise analyze`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from layerwise.cli.interrupts import interrupts_end_at_once
from layerwise.cli.parser import Parser, tokens_of
from layerwise.errors import InputError, choices
from layerwise.experiment.questions import OF_IMAGES, QUESTIONS
from layerwise.report.console import console, output
from layerwise.runs.run import Run

if TYPE_CHECKING:
    from layerwise.experiment.findings import Findings
    from layerwise.experiment.subject import Subject

OF_TEXT = [question for question in QUESTIONS if question not in OF_IMAGES]


def main(arguments: list[str]) -> None:
    """Analyze what the networks of runs have learned, block by block: numbers as JSON and pictures
    as PNG, in a new folder analysis-N of the first run."""
    parser = Parser(prog="layerwise analyze", description=main.__doc__)
    parser.add_argument("runs", type=str, nargs="+", help="run folders")
    asked = "; ".join(f"{name}: {what}" for name, what in QUESTIONS.items())
    parser.add_argument(
        "--questions",
        type=list[str] | None,
        default=None,
        help="any of these; null: all that a run can answer (a run on a text: "
        f"{', '.join(OF_TEXT)}). {asked}",
    )
    parser.add_argument(
        "--checkpoint",
        type=str,
        default="last",
        help="last, best (the best epoch on the validation split), or a file in the run's folder",
    )
    parser.add_argument(
        "--split", type=str, default="test", help="split to measure on: test, validation or train"
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=2000,
        help="number of images of a split, or windows of a text, drawn at random; 0 for all",
    )
    parser.add_argument(
        "--epochs", type=int, default=10, help="training epochs of probes, classifiers and decoders"
    )
    parser.add_argument(
        "--pool",
        type=int | None,
        default=2,
        help="probe and separability: average feature maps down to pool x pool; null: do not pool",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the random samples and of the probes"
    )
    parser.add_argument("--device", type=str, default="auto", help="as in `layerwise train`")
    found = parser.read(tokens_of(arguments, positional=True))
    _check(found)
    runs = [Run.open(path) for path in found["runs"]]
    with interrupts_end_at_once():  # seconds, which neither help nor an error waits for
        from layerwise.experiment.findings import Findings, answered_by
        from layerwise.experiment.subject import Subject
        from layerwise.report.comparison import labels_of
    labels = labels_of(runs)
    if len(set(labels)) < len(labels):
        raise InputError(f"analyze {' '.join(found['runs'])}: give every run once")
    subjects = [Subject.of(run, label, found) for run, label in zip(runs, labels, strict=True)]
    questions, left_out = answered_by(subjects, found["questions"])
    for line in left_out:
        console.print(line, soft_wrap=True)
    findings = Findings(subjects, questions)
    for line in findings.left_out:
        console.print(line, soft_wrap=True)
    folder, files = findings.write()
    for subject in subjects:
        for table in _tables(subject, findings):
            output.print(table)
        if about := findings.summary_of_difficulty(subject.label):
            output.print(f"{subject.label}: {_in_words(about)}", soft_wrap=True)
    output.print(f"{folder}: {', '.join(files)}", soft_wrap=True)


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


def _in_words(about: dict[str, Any]) -> str:
    return (
        f"of {about['samples']:,} training images {about['unforgettable']:,} were learned and "
        f"never forgotten, {about['forgotten']:,} forgotten once or more, "
        f"{about['never_learned']:,} never learned; "
        f"they were right after {100 * about['consistency']:.1f} % of the epochs"
    )


# Tables of a few columns, for narrow terminals: title -> column -> key, factor, digits.
TABLES = {
    "a linear classifier on each block's output": {
        "probe, %": ("probe", 100, 1),
        "separable, %": ("separability", 100, 1),
    },
    "information of each block's output on image and label": {
        "image loss, nats": ("reconstruction", 1, 3),
        "label, nats": ("label", 1, 2),
    },
    "each block's output": {
        "effective rank": ("rank", 1, 1),
        "knee": ("knee", 1, 0),
        "mean norm": ("norm", 1, 1),
    },
    "correlation of single features with the label": {
        "strongest": ("strongest", 1, 3),
        "mean": ("correlation", 1, 3),
    },
    "random labels that are known by heart": {"memorized, %": ("memorized", 100, 1)},
    "the gradient, compared with backpropagation's": {
        "angle, degrees": ("angle", 1, 1),
        "ratio of norms": ("ratio", 1, 3),
    },
}


OF_LAYERS = {
    "to the weight": ("to_weight", 1, 1),
    "to its pseudo-inverse": ("to_pseudo_inverse", 1, 1),
}


def _tables(subject: Subject, findings: Findings) -> list[Table]:
    rows, layers = findings.blocks[subject.label], findings.feedback[subject.label]
    title = f"{subject.label}, epoch {subject.epoch}: "
    tables = [_table(title + about, "block", rows, columns) for about, columns in TABLES.items()]
    tables.append(_table(f"{title}angle of feedback matrices, degrees", "layer", layers, OF_LAYERS))
    return [table for table in tables if table is not None]


def _table(
    title: str, of: str, rows: list[dict[str, Any]], columns: dict[str, tuple[str, int, int]]
) -> Table | None:
    """A row per block or layer; None if no column is known."""
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
