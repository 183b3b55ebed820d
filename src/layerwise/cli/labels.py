"""`layerwise labels`."""

from __future__ import annotations

from rich.table import Table

from layerwise.cli.interrupts import interrupts_end_at_once
from layerwise.cli.parser import Parser, tokens_of
from layerwise.report.console import console, output
from layerwise.runs.run import Run


def main(arguments: list[str]) -> None:
    """Measure how many labels runs need: test accuracy over the share of labels, by linear probes
    or by fine-tuning; a table, numbers and a picture in a new folder labels-N of the first run."""
    parser = Parser(prog="layerwise labels", description=main.__doc__)
    parser.add_argument("runs", type=str, nargs="+", help="run folders")
    parser.add_argument(
        "--shares",
        type=list[float],
        default=[0.01, 0.1, 1.0],
        help="shares of the training images that have a label, the classes in proportion",
    )
    parser.add_argument(
        "--how",
        type=str,
        default="probe",
        help="probe: linear classifiers of frozen outputs; finetune: train the whole network end "
        "to end, from the run's weights except those of its last block",
    )
    parser.add_argument(
        "--draws",
        type=int,
        default=1,
        help="draws of the labels for each share; the first has the seed of the run",
    )
    parser.add_argument(
        "--untrained", type=bool, default=True, help="also measure every network before training"
    )
    parser.add_argument(
        "--epochs",
        type=int,
        default=10,
        help="training as long as these passes over all images; the same steps for every share",
    )
    parser.add_argument(
        "--block",
        type=int | None,
        default=None,
        help="probe: the block whose output is read in the table; null: the last but one",
    )
    parser.add_argument(
        "--pool",
        type=int | None,
        default=2,
        help="probe: average feature maps down to pool x pool; null: do not pool",
    )
    parser.add_argument(
        "--lr", type=float | None, default=None, help="finetune: learning rate; null: the run's"
    )
    parser.add_argument(
        "--checkpoint", type=str, default="last", help="last, best, or a file in the run's folder"
    )
    parser.add_argument("--device", type=str, default="auto", help="as in `layerwise train`")
    found = parser.read(tokens_of(arguments, positional=True))
    runs = [Run.open(path) for path in found["runs"]]
    with interrupts_end_at_once():  # seconds, which neither help nor an error waits for
        from layerwise.experiment.label_curves import LabelCurves, check
        from layerwise.report.comparison import labels_of
    check(found, found["runs"])
    named = dict(zip(labels_of(runs), runs, strict=True))
    curves = LabelCurves(named, found, lambda line: console.print(line, soft_wrap=True))
    table = Table(title=f"test accuracy, %, {found['how']}")
    for column in ("labels", *curves.names):
        table.add_column(column, justify="right")
    for share in sorted(found["shares"]):
        cells = []
        for name in curves.names:
            mean, spread = curves.mean(name, share)
            cells.append(f"{100 * mean:.1f}" + (f" ± {100 * spread:.1f}" if spread else ""))
        table.add_row(f"{100 * share:g} %", *cells)
    output.print(table)
    output.print(f"{curves.folder}: {', '.join(curves.write())}", soft_wrap=True)
