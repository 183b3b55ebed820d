"""The measurements of one rule or objective, for its card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from layerwise.objectives import Objective
from pages import all_rules, probes
from pages.figures import accuracy, flops, memory, time
from pages.files import result, results
from pages.spread import mean

# What every table is compared with: the rows' names in benchmarks/all_rules.py.
REFERENCES = {"backprop": "backpropagation", "random-fixed": "only the last block trained"}


def of_rule(name: str) -> list[str]:
    """Accuracies at equal budget, and perplexities."""
    return _section(
        _accuracies(lambda rule: rule["name"] == name, f"--rule {name}"), _perplexities(name)
    )


def of_objective(objective: type[Objective]) -> list[str]:
    """Accuracies at equal budget, and linear probes."""
    name = objective.__name__
    return _section(
        _accuracies(lambda rule: name in objectives_of(rule), "--rule Greedy"), _probes(name)
    )


def objectives_of(rule: Mapping[str, Any]) -> list[str]:
    """Names of the objectives in a rule's configuration."""
    given = rule.get("objectives") or {}
    return given["name"].split("+") if given else []


def _section(*tables: str) -> list[str]:
    shown = [table for table in tables if table]
    return ["## Results", *shown] if shown else []


def _accuracies(uses: Any, implied: str) -> str:
    lines: list[str] = []
    seeds: set[int] = set()
    for setting, title in all_rules.SETTINGS.items():
        rows = all_rules.rows(setting)
        own = [name for name, row in rows.items() if uses(row["config"]["rule"])]
        if not own or own == ["backprop"]:
            continue
        anchor = title.lower().replace(" ", "-").replace("'", "").replace(",", "")
        named = f"[{title}](../results.md#{anchor})"
        others = [name for name in REFERENCES if name in rows and name not in own]
        for name in [*own, *others]:
            options = rows[name]["command"].removeprefix(implied).strip()
            label = REFERENCES.get(name) if name in others else f"`{options}`" if options else ""
            seeds.add(len(rows[name]["seeds"]))
            cells = [f(setting, name) for f in (accuracy, flops, time, memory)]
            lines.append(f"| {named} | {label} | {' | '.join(cells)} |")
            named = ""
    if not lines:
        return ""
    return "\n".join(
        [
            "Test accuracy in % after the last epoch, mean ± standard deviation over "
            f"{' or '.join(map(str, sorted(seeds)))} seeds;\nFLOPs, time and memory of a step are "
            "ratios to backpropagation's. All rules, and how they are\ncompared, are under "
            "[accuracy at equal budget](../results.md#accuracy-at-equal-budget).\n",
            "| network | options | test, % | FLOPs | time | memory |",
            "|---|---|--:|--:|--:|--:|",
            *lines,
        ]
    )


def _perplexities(rule: str) -> str:
    lines = []
    for found in results("text"):
        data = "English" if found["of_python"] else "a generated language"
        budget = found["budget"]
        kind = "" if budget["norm_first"] else ", normalisation at the end of layers"
        named = f"{data}, {budget['layers']} layers{kind}"
        for row in found["rows"]:
            own = row["rule"].startswith(rule)
            if own or row["rule"] in ("Backprop", "LastBlock"):
                found_test = [of_run["test"] for of_run in row["runs"]]
                perplexity = mean(found_test, 3 if min(found_test) < 2 else 2)
                ratio = all_rules.flops(row["costs"])
                lines.append((own, f"| {named} | {row['rule']} | {perplexity} | {ratio} |"))
                named = ""
    if rule in ("Backprop", "LastBlock") or not any(own for own, _ in lines):
        return ""
    return "\n".join(
        [
            "Test perplexity of a small causal transformer ([results](../results.md#text)):\n",
            "| text | rule | perplexity | FLOPs |",
            "|---|---|--:|--:|",
            *(line for _, line in lines),
        ]
    )


def _probes(objective: str) -> str:
    lines = []
    for file in ("probe-cifar10", "probe-cifar10-patch-16", "probe-digits"):
        found = result(file)
        of = probes.accuracies(found)
        images = f", {found['given']['images']:,} images" if found["given"]["images"] else ""
        patches = f", patches of {found['given']['patch']} pixels"
        for name, seeds in of.items():
            if objective not in name.replace("-", ""):
                continue
            data = f"{found['data']}{images}{patches if 'patches' in name else ''}"
            cells = [mean(block, 1) for block in zip(*seeds.values(), strict=True)]
            cells += [mean(probes.above(of, name, base), 1) for base in probes.BASES]
            lines.append(f"| {data} | {len(seeds)} | {' | '.join(cells)} |")
    if not lines:
        return ""
    return "\n".join(
        [
            "Test accuracy in % of a linear probe after each of three blocks, and how many points "
            "the last block\nlies above the same network with fixed random blocks, and above the "
            "untrained network, seed by seed\n([results](../results.md#without-labels)):\n",
            "| data | seeds | block 1 | block 2 | block 3 | above random | above untrained |",
            "|---|--:|--:|--:|--:|--:|--:|",
            *lines,
        ]
    )
