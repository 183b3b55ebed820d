"""`layerwise sweep`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from rich.table import Table

from layerwise.cli.interrupts import interrupts_end_at_once
from layerwise.cli.options import experiment_config, experiment_parser, read_config
from layerwise.cli.parser import Parser, Tokens, asks_for_help, last, tokens_of
from layerwise.errors import InputError
from layerwise.experiment.config import DEFAULTS
from layerwise.report.console import output
from layerwise.report.progress_bar import ProgressBar
from layerwise.runs import safe_yaml
from layerwise.runs.files import write_atomically
from layerwise.runs.run import check_name

if TYPE_CHECKING:
    from layerwise.experiment.search import Best, Space, Values

SWEEP, TABLE = "sweep.yaml", "table.md"
OF_ALL_TRIALS = {"", "checkpoint", "config", "name", "recipe", "resume", "runs"}
ABOUT = """Search options of a training on the validation split, with the same trials for every
rule. Every trial is a run in RUNS/NAME, which also keeps the search: the same command continues it,
with more --trials too. All options of `layerwise train` are those of every trial."""


def main(arguments: list[str]) -> None:
    """Search over options, the same for every rule."""
    tokens = tokens_of(arguments)
    own = ("trials", "sampler", "search_seed")
    searched = {t[9:].partition("=")[0]: t.partition("=")[2] for t in tokens if _searches(t)}
    rest = read_config([t for t in tokens if not _searches(t)])
    parser = _parser()
    found = parser.read([t for t in rest if t[2:].partition("=")[0] in own])
    if asks_for_help(tokens):
        print(parser.help_text())
        return
    rest = [t for t in rest if t[2:].partition("=")[0] not in own]
    name, trials = last(rest, "name"), found["trials"]
    if name is None:
        raise InputError("give --name NAME, the folder of its runs; with it the search goes on")
    if not searched:
        raise InputError(
            "nothing is searched; give --search.OPTION, such as --search.optimizer.lr "
            "'1e-3..1 log', and --search.rule DGL,Backprop for several rules"
        )
    if told := sorted(searched.keys() & OF_ALL_TRIALS):
        raise InputError(f"--search.{told[0]}: no option of a training; leave it out")
    if trials < 1:
        raise InputError(f"--trials {trials}: give at least 1")
    with interrupts_end_at_once():  # seconds, which neither help nor an error waits for
        from layerwise.experiment.search import Space, check, search
    spaces = {option: Space.of(option, text) for option, text in searched.items()}
    rules, runs = _rules(rest, spaces)
    check(rules, spaces)
    folder = _folder(Path(runs), name, rest, searched, found)
    bests = search(
        folder,
        rules,
        spaces,
        trials=trials,
        sampler=found["sampler"],
        seed=found["search_seed"],
        progress=ProgressBar(),
    )
    rows = _rows(bests)
    output.print(_table(rows))
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    write_atomically(folder / TABLE, text.encode())
    output.print(f"{folder / TABLE}; all trials: layerwise compare {folder}/*-*", soft_wrap=True)


def _searches(token: str) -> bool:
    return token.startswith("--search.")


def _parser() -> Parser:
    parser = Parser("layerwise sweep --name NAME --search.OPTION VALUES", ABOUT)
    parser.add_argument("--trials", type=int, default=20, help="trials of each rule")
    parser.add_argument(
        "--sampler",
        type=Literal["tpe", "random"],
        default="tpe",
        help="tpe: learns from the trials before, after ten at random; random: the same options "
        "for every rule",
    )
    parser.add_argument(
        "--search_seed", type=int, default=0, help="seed of the choice of options, not of the runs"
    )
    parser.add_argument(
        "--search.OPTION",
        type=str,
        default="",
        help="values of an option of `layerwise train`: a range, 1e-4..1e-1 log or 1..4, or some "
        "by name, a,b,c; --search.rule DGL,Backprop searches for each rule by itself",
    )
    return parser


def _rules(
    tokens: Tokens, spaces: dict[str, Space]
) -> tuple[dict[str, Callable[[Values], dict[str, Any]]], str]:
    """The config of each rule with some values of the options, and the folder of all runs; `rule`
    is taken out of the spaces."""

    def config_of(rule: Sequence[str], values: Values) -> dict[str, Any]:
        given = [f"--{option}={value}" for option, value in values.items()]
        of_another = rule and rule[0].lower() != f"--rule={base}".lower()  # its options go
        kept = [t for t in tokens if not (of_another and t.startswith(("--rule=", "--rule.")))]
        parser, all_of_it = experiment_parser([*kept, *rule, *given], "layerwise sweep")
        found = parser.read(all_of_it)
        for option in ("resume", "checkpoint"):
            if found[option] is not None:
                raise InputError(f"--{option}: the same sweep command continues a sweep")
        nonlocal runs
        runs = found["runs"]
        return experiment_config(found)

    runs, base = "", last(tokens, "rule") or last(tokens, "rule.name") or DEFAULTS["rule"]
    space = spaces.pop("rule", None)
    if space is not None and not space.choices:
        raise InputError("--search.rule: give names, such as DGL,Backprop")
    named = [] if space is None else [(f"--rule={rule}",) for rule in space.choices]
    rules: dict[str, Callable[[Values], dict[str, Any]]] = {}
    for rule in named or [()]:
        name = config_of(rule, {})["rule"]["name"]

        def config(values: Values, rule: Sequence[str] = rule) -> dict[str, Any]:
            return config_of(rule, values)

        rules[name] = config
    return rules, runs


def _folder(
    runs: Path, name: str, tokens: Tokens, searched: Mapping[str, str], found: dict[str, Any]
) -> Path:
    """The folder of the sweep, new or begun with the same options.

    Raises:
        InputError: it holds something else, or a sweep with other options.
    """
    folder = runs.expanduser() / name
    options = [t for t in tokens if not t.startswith(("--name=", "--runs="))]
    asked = {
        "search": dict(searched),
        "sampler": found["sampler"],
        "search_seed": found["search_seed"],
        "options": sorted(options),
    }
    if not (folder / SWEEP).is_file():
        check_name(runs, name)
        folder.mkdir(parents=True)
        write_atomically(folder / SWEEP, yaml.safe_dump(asked, sort_keys=False).encode())
        return folder
    try:
        then = safe_yaml.load_file(folder / SWEEP)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"sweep {folder}: {SWEEP} cannot be read: {error}") from error
    for key, value in asked.items():
        was = then.get(key) if isinstance(then, dict) else None
        if was != value:
            raise InputError(
                f"{folder}: it was begun with {key} {was}, and this command has {value}; "
                "give the same, or another --name"
            )
    return folder


def _rows(bests: Sequence[Best]) -> list[dict[str, str]]:
    options = list(dict.fromkeys(option for best in bests for option in best.values))
    rows = []
    for best in bests:
        row = {
            "rule": best.rule,
            "trials": f"{best.trials}" + (f", {best.diverged} diverged" if best.diverged else ""),
            "best": best.run or "-",
        }
        accuracy = best.row.get("validation_accuracy") is not None
        for split in ("validation", "test"):
            value = best.row.get(f"{split}_{'accuracy' if accuracy else 'loss'}")
            shown = "-" if value is None else f"{100 * value:.2f} %" if accuracy else f"{value:.4f}"
            row[split] = shown
        epoch = best.row.get("epoch")
        row["epoch"] = "-" if epoch is None else f"{epoch:.0f}"
        for option in options:
            value = best.values.get(option, "-")
            row[option] = f"{value:.4g}" if isinstance(value, float) else str(value)
        rows.append(row)
    return rows


def _table(rows: Sequence[Mapping[str, str]]) -> Table:
    table = Table(title="the best trial of each rule on validation")
    for column in rows[0]:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    return table
