"""docs/networks.md: the networks that were cut, and whether blocks do what the models do."""

from __future__ import annotations

from typing import Any

from pages.files import commands, machines, result


def page() -> str:
    """The whole document."""
    return written(result("zoo"))


def written(result: dict[str, Any]) -> str:
    """The document of a result of benchmarks/zoo.py."""
    of: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        of.setdefault(row["library"], []).append(row)
    lines = [
        "# Networks\n",
        "This page is written by `make tables` from `benchmarks/results/zoo.json`. It lists small "
        "networks, made from configurations, one of every family. Text comes in padded batches "
        "with a mask. Each network is cut into four blocks and compared, bit for bit, with a plain "
        "training loop on a copy. *Output equal*: in eval mode the blocks give the model's "
        "output, also when they run one after another (`exits`). *Gradients equal*: in train mode, "
        "with the same seed, `Backprop` gives the loop's loss, every parameter's gradient and "
        "every buffer. "
        "*Reached by DGL*: every parameter that has a gradient in the loop has one under `DGL`. "
        "Where `DGL` refuses four blocks of equal cost because an encoder's tokens have no labels, "
        "the network is cut again at places where tokens have labels (*cut elsewhere*). "
        "*Isolated*: the first block's gradient does not depend on later weights.\n",
        "| library | networks | cut | into four blocks | output equal | gradients equal "
        "| reached by DGL | cut elsewhere | isolated |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for library, rows in of.items():
        version = result.get(library, "")
        counts = [
            len(rows),
            sum(row["blocks"] > 1 for row in rows),
            sum(row["blocks"] == 4 for row in rows),
            sum(bool(row["eval_equal"] and row["exits_equal"]) for row in rows),
            sum(_trained_equal(row) for row in rows),
            sum(row["unreached"] == [] and not row.get("at") for row in rows),
            sum(row["unreached"] == [] and bool(row.get("at")) for row in rows),
            sum(row["isolated"] is True for row in rows),
        ]
        lines.append(f"| {library} {version} | {' | '.join(map(str, counts))} |")
    refused = [
        (row, step, reason + (_elsewhere(row) if step == "dgl" else ""))
        for row in result["rows"]
        for step, reason in row["refusals"].items()
    ]
    if refused:
        lines += ["\n## Refusals and their reasons\n", "| network | blocks | step | reason |"]
        lines += ["|---|--:|---|---|"]
        lines += [
            f"| {_called(row)} | {row['blocks'] or ''} | {step} | {_cell(reason)} |"
            for row, step, reason in refused
        ]
    if wrong := [(row, line) for row in result["rows"] for line in _wrong(row)]:
        lines += ["\n## Failures\n", "| network | |", "|---|---|"]
        lines += [f"| {_called(row)} | {_cell(line)} |" for row, line in wrong]
    lines += ["\n## The networks\n"]
    for library, rows in of.items():
        kinds: dict[str, list[str]] = {}
        for row in rows:
            # timm has one network for each kind.
            kind = "" if library == "timm" else f", {row['kind']}"
            kinds.setdefault(kind, []).append(f"`{row['name']}`")
            kinds[kind] += [f"({name})" for name in row["stands_for"]]
        lines += [f"**{library}{kind}**: {', '.join(names)}.\n" for kind, names in kinds.items()]
    lines += [
        "Names in brackets are larger networks built by the same code as the one before them; they "
        "were not run. "
        f"{machines([result])}, float32.\n",
        commands([result["command"]]),
    ]
    return "\n".join(lines)


def _trained_equal(row: dict[str, Any]) -> bool:
    return bool(row["loss_equal"]) and row["gradients_differ"] == row["buffers_differ"] == []


def _wrong(row: dict[str, Any]) -> list[str]:
    found = [f"{step}: {error.splitlines()[-1]}" for step, error in row["errors"].items()]
    found += [f"cut changes {what}" for what in row["changed"] or ()]
    found += [
        f"not {name.replace('_', ' ')}"
        for name in ("eval_equal", "exits_equal", "loss_equal", "isolated")
        if row[name] is False
    ]
    for name in ("gradients_differ", "buffers_differ", "unreached"):
        if names := row[name]:
            more = f" and {len(names) - 2} more" if len(names) > 2 else ""
            found.append(f"{name.replace('_', ' ')}: {', '.join(names[:2])}{more}")
    return found


def _called(row: dict[str, Any]) -> str:
    return f"{row['library']}: {row['name']}"


def _elsewhere(row: dict[str, Any]) -> str:
    return f"; it runs with `at={list(row['at'])}`" if row.get("at") else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
