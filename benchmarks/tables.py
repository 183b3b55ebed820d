"""Write docs/results.md, docs/networks.md and the README's tables from benchmarks/results/.

python benchmarks/tables.py            write them
python benchmarks/tables.py --check    fail where they are not what the files give
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layerwise.costs import Measured, StepTable
from layerwise.costs import markdown as step_table
from layerwise.costs.blocks import Costs
from layerwise.report.comparison import Summary, over_seeds
from layerwise.report.comparison import markdown as accuracy_table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE, README = ROOT / "docs" / "results.md", ROOT / "README.md"
NETWORKS, ZOO = ROOT / "docs" / "networks.md", RESULTS / "zoo.json"

INTRODUCTION = """\
# Results

Written by `make tables` from the files in `benchmarks/results/`; each holds the command that made
it, versions, machine and every raw number. Times and bytes are ratios to backpropagation on the
same network and batch, measured in turns in one run, while the other core did other work.
"""


# Of the ladder's and of the measured steps, those that the README shows.
SHOWN = (
    "backprop",
    "deep-supervision",
    "overlap-4-3",
    "overlap-2-2",
    "overlap",
    "auglocal",
    "man",
    "dgl-narrow",
    "dgl-conv",
    "mono-forward",
    "dgl",
    "kolen-pollack",
    "usf",
    "ldrl",
    "dtp",
    "dfa",
    "fa",
    "random-fixed",
)
SHOWN_STEPS = ("resnet110-16", "resnet50-8", "vit12-12", "vgg8b-linear")


def readme() -> str:
    """The README with its tables as the files give them."""
    text = README.read_text()
    for name, table in (("accuracy", _reached()), ("text", _read()), ("memory", _saved())):
        between = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text = re.sub(between, lambda m, t=table: m[1] + t + m[2], text, flags=re.DOTALL)
    return text


def _reached() -> str:
    sizes = [_rows_of(size) for size in ("m", "resnet20")]
    lines = [
        "| rule | CNN, % | FLOPs | time | memory | ResNet-20, % | FLOPs | time | memory |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in SHOWN:
        cells = []
        for row in (rows.get(name) for rows in sizes):
            if row is None:
                cells += [""] * 4
                continue
            costs, step = row["costs"], row["step"]
            ratios = (a / b for a, b in zip(step["times_s"], step["backprop_times_s"], strict=True))
            cells += [
                _spread(row, "last"),
                _flops(costs),
                f"{statistics.median(ratios):.2f}",
                f"{step['bytes'] / step['backprop_bytes']:.2f}",
            ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _read() -> str:
    """Perplexities of the small transformer."""
    texts = {
        "a generated language": "markov",
        "English": "python-topics",
    }
    found = [json.loads((RESULTS / f"text-{name}.json").read_text()) for name in texts.values()]
    lines = [f"| rule | {' | '.join(texts)} | FLOPs |", "|---|" + "--:|" * (len(texts) + 1)]
    for rows in zip(*(result["rows"] for result in found), strict=True):
        assert len({row["rule"] for row in rows}) == 1
        cells = [_of_seeds([run["test"] for run in row["runs"]], 2) for row in rows]
        costs = rows[-1]["costs"]
        lines.append(f"| `{rows[0]['rule']}` | {' | '.join(cells)} | {_flops(costs)} |")
    return "\n".join(lines) + "\n"


def _rows_of(size: str) -> dict[str, dict[str, Any]]:
    found = json.loads((RESULTS / f"ladder-{size}.json").read_text())
    return {row["rule"]: row for row in found["rows"]}


def _saved() -> str:
    lines = [
        "| network, batch | blocks | time: checkpointing | local | memory: checkpointing | local |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name in SHOWN_STEPS:
        table = StepTable.load(RESULTS / f"step-{name}.json")
        checkpointing, local = map(table.ratios, table.contenders[1:3])
        lines.append(
            f"| {table.title}, {'x'.join(map(str, table.batch))} | {len(table.setting['blocks'])} "
            f"| {checkpointing['time']['median']:.2f} | {local['time']['median']:.2f} "
            f"| {checkpointing['peak_bytes']:.2f} | {local['peak_bytes']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def page() -> str:
    """The whole document."""
    parts = []
    if steps := sorted(RESULTS.glob("step-*.json")):
        parts += ["## A training step\n", step_table(steps)]
        commands = {json.loads(path.read_text())["command"] for path in steps}
        parts.append(_commands(sorted(commands)))
    if peers := sorted(RESULTS.glob("peers-*.json")):
        parts += ["## Beside biotorch\n", _peers([StepTable.load(path) for path in peers])]
    for path in sorted(RESULTS.glob("accuracy-*.json")):
        parts += [f"## Accuracy: {path.stem.removeprefix('accuracy-')}\n", _accuracy(path)]
    if paths := sorted(RESULTS.glob("ladder-*.json")):
        parts += ["## The ladder\n", *(_ladder(json.loads(path.read_text())) for path in paths)]
    if paths := sorted(RESULTS.glob("text-*.json")):
        parts += ["## Text\n", *(_text(json.loads(path.read_text())) for path in paths)]
        parts.append(_streams(json.loads((RESULTS / "streams.json").read_text())))
    if paths := sorted(RESULTS.glob("stages-*.json")):
        parts += ["## Layers in parallel\n", *(_stages(json.loads(p.read_text())) for p in paths)]
    if paths := sorted(RESULTS.glob("probe-*.json")):
        parts += ["## Without labels\n", *(_probes(json.loads(path.read_text())) for path in paths)]
    if paths := sorted(RESULTS.glob("data-*.json")):
        parts += ["## The data path\n", _data([json.loads(path.read_text()) for path in paths])]
    text = "\n".join(parts)
    contents = [f"- [{name}](#{_anchor(name)})" for name in re.findall(r"^## (.*)$", text, re.M)]
    return "\n".join([INTRODUCTION, *contents, "", text])


def networks(result: dict[str, Any]) -> str:
    """Which networks are cut, and whether the blocks do what the models do."""
    of: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        of.setdefault(row["library"], []).append(row)
    lines = [
        "# Networks\n",
        f"Written by `make tables` from `benchmarks/results/{ZOO.name}`. Small networks, made from "
        "configurations, one of every family; text comes in padded batches with a mask. Each is "
        "cut into four blocks and compared with a plain training loop on a copy, bit for bit. "
        "*Output equal*: in eval mode the blocks give what the model gives, also one after another "
        "(`exits`). *Gradients equal*: in train mode, with the same seed, `Backprop` gives the "
        "loop's loss, every parameter's gradient and every buffer. *Reached by DGL*: every "
        "parameter that has a gradient in the loop has one; where DGL refuses four blocks of equal "
        "cost because an encoder's tokens have no labels, it is tried again, cut where they have "
        "(*cut elsewhere*). *Isolated*: the first block's gradient does not depend on later "
        "weights.\n",
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
        lines += ["\n## What is refused, and why\n", "| network | blocks | step | reason |"]
        lines += ["|---|--:|---|---|"]
        lines += [
            f"| {_called(row)} | {row['blocks'] or ''} | {step} | {_cell(reason)} |"
            for row, step, reason in refused
        ]
    if wrong := [(row, line) for row in result["rows"] for line in _wrong(row)]:
        lines += ["\n## What is not as it should be\n", "| network | |", "|---|---|"]
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
        "In brackets: larger networks of the same code as the one before them, which were not run. "
        f"{result['cpu']}, torch {result['torch']}, float32.\n",
        _commands([result["command"]]),
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
    return f"; done with `at={list(row['at'])}`" if row.get("at") else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _peers(tables: list[StepTable]) -> str:
    """Rules of `benchmarks/peers.py`, each beside the peer's contender of the same name."""
    lines = [
        "| network, batch | | step / backprop's: CPU time | wall | FLOPs | memory "
        "| biotorch's: CPU time | wall | FLOPs | memory "
        "| faster than biotorch by: CPU time | wall |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for table in tables:
        of = {contender.name: contender for contender in table.contenders}
        batch = "x".join(map(str, table.batch))
        for name, own in of.items():
            if f"biotorch {name}" not in of:
                continue
            peer = of[f"biotorch {name}"]
            lines.append(
                f"| {table.title}, {batch} | {name} | {_over(table, own)} | {_over(table, peer)} "
                f"| {_ratio(peer.cpu_times_s, own.cpu_times_s)} "
                f"| {_ratio(peer.times_s, own.times_s)} |"
            )
    made, version = tables[0].provenance, tables[0].setting["biotorch"]
    commands = sorted({table.provenance["command"] for table in tables})
    return (
        "\n".join(lines)
        + f"\n\nMedian of the rounds' ratios (lowest to highest); biotorch {version}. "
        f"{made['cpu']}, {made['threads']} thread on {made['cores']} cores, torch "
        f"{made['torch']}, float32. The FLOPs say what there is to win: where both are 1.00 and "
        "CPU time is near 1, nothing. `dfa` goes to blocks here and to every layer there.\n\n"
        + _commands(commands)
    )


def _over(table: StepTable, contender: Measured) -> str:
    ratios = table.ratios(contender)
    cpu, wall = ratios["cpu_time"]["median"], ratios["time"]["median"]
    return f"{cpu:.2f} | {wall:.2f} | {ratios['flops']:.2f} | {ratios['peak_bytes']:.2f}"


def _accuracy(path: Path) -> str:
    runs = json.loads(path.read_text())["runs"]
    summaries = [
        Summary.of_metrics(
            run["run"], run["config"], run["metrics"], Costs.from_json(json.dumps(run["costs"]))
        )
        for run in runs
    ]
    made_by = [run["environment"] for run in runs]
    machines = dict.fromkeys(
        f"{m['cpu']}, {m['cores']} cores, {m['threads']} thread(s) a run, torch {m['torch']}"
        for m in made_by
    )
    several = len({run["config"]["seed"] for run in runs}) > 1
    table = over_seeds(summaries) if several else accuracy_table(summaries)
    reported = "".join(_beside_the_seed(runs)) if "first_iteration" in path.stem else ""
    return (
        f"{table}\n{reported}"
        f"{'; '.join(machines)}. images/s were not measured in turns: they say what the run took, "
        f"not how the rules compare.\n\n{_commands([m['command'] for m in made_by])}"
    )


# Test accuracy in %, the highest of the run, as the project's seed reports it.
SEED = {"seed-1-bp": 76.5, "seed-1-dgl": 77.6, "seed-1-dni": 65.6, "seed-1-cdni": 73.7}


def _beside_the_seed(runs: list[dict[str, Any]]) -> list[str]:
    lines = [
        "The seed reports the highest test accuracy of any epoch; beside it here, and only here, "
        "the same.\n\n",
        "| run | seed | highest of any epoch | epoch | difference | last |\n",
        "|---|--:|--:|--:|--:|--:|\n",
    ]
    for run in runs:
        tested = [(100 * row["test_accuracy"], int(row["epoch"])) for row in run["metrics"]]
        highest, epoch = max(tested)
        then = SEED[run["run"]]
        lines.append(
            f"| {run['run']} | {then} | {highest:.2f} | {epoch} | {highest - then:+.1f} "
            f"| {tested[-1][0]:.2f} |\n"
        )
    return [*lines, "\n"]


def _ladder(result: dict[str, Any]) -> str:
    rows = result["rows"]
    config, first = rows[0]["config"], rows[0]["step"]
    augment = [k for k in ("flip", "crop", "cutout", "resized_crop") if config["augment"][k]]
    tried, seeds = ", ".join(rows[0]["searched"]), ", ".join(map(str, rows[0]["seeds"]))
    measured = [row["environment"] for row in rows]
    machines = dict.fromkeys(f"{m['cpu']}, torch {m['torch']}" for m in measured)
    commands = dict.fromkeys(m["command"] for m in measured)
    lines = [
        f"### {result['size']}\n",
        f"{config['data']['name']} ({', '.join(augment) or 'as they are'}), "
        f"{config['model']['name']}, {len(rows[0]['costs']['blocks'])} blocks, "
        f"{config['epochs']} epochs, {config['optimizer']['name']}, precision "
        f"{config['precision']}; learning rates tried with seed {rows[0]['seeds'][0]} for every "
        f"rule: {tried}; seeds {seeds}.\n",
        "| rule | test, best on validation, % | test, last, % | learning rate | FLOPs | heads' "
        "parameters | step time | memory | largest block's share |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        f"| *checkpointing* | as backprop | | | | | "
        f"{_ratio(first['checkpointing_times_s'], first['backprop_times_s'])} "
        f"| {first['checkpointing_bytes'] / first['backprop_bytes']:.2f} | |",
    ]
    for row in rows:
        costs, step, seconds = row["costs"], row["step"], row["block_seconds"]
        heads = sum(block["head_parameters"] for block in costs["blocks"])
        share = f"{max(seconds) / sum(seconds):.2f}" if seconds else "-"
        lines.append(
            f"| {row['rule']} | {_spread(row, 'best')} | {_spread(row, 'last')} "
            f"| {row['rate']:g} | {_flops(costs)} | {heads:,} "
            f"| {_ratio(step['times_s'], step['backprop_times_s'])} "
            f"| {step['bytes'] / step['backprop_bytes']:.2f} | {share} |"
        )
    return (
        "\n".join(lines)
        + "\n\nMean ± standard deviation over the seeds. FLOPs, time (median of rounds in turns, "
        "lowest to highest) and memory of a training step, heads and optimizer with it, are ratios "
        "to backpropagation's, in float32. The largest block's share of a step bounds what blocks "
        "in parallel can gain; - where they cannot. `sequential`: FLOPs and time are the mean "
        "over its phases, memory is the most of one. "
        f"{'; '.join(machines)}.\n\n"
        + _commands([*commands, *(f"{row['rule']}: {row['command']}" for row in rows)])
    )


def _text(result: dict[str, Any]) -> str:
    rows, budget = result["rows"], result["budget"]
    tried, seeds = ", ".join(rows[0]["searched"]), ", ".join(map(str, rows[0]["seeds"]))
    searched = ", ".join(map(str, rows[0]["searched_seeds"]))
    python = f" of Python {result['of_python']}" if result["of_python"] else ""
    kind = "" if budget["norm_first"] else ", layers that end with their normalisation"
    kind += "" if budget["layers"] == 2 else f", {budget['layers']} layers"
    lines = [
        f"### {result['data']}{python}{kind}\n\n{result['vocabulary']} different characters; gpt "
        f"of {budget['layers']} layers of width {budget['width']}, each a block; {budget['steps']} "
        f"steps on {budget['batch_size']} windows of {budget['context']}. Learning rates tried "
        f"with seeds {searched} for every rule: {tried}, chosen by validation; seeds {seeds}.\n",
        "| rule | test perplexity | test accuracy, % | learning rate | FLOPs | of these the "
        "heads', % | heads' parameters |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        costs, runs = row["costs"], row["runs"]
        heads = sum(block["head_parameters"] for block in costs["blocks"])
        lines.append(
            f"| {row['rule']} | {_of_seeds([run['test'] for run in runs], 3)} "
            f"| {_of_seeds([100 * run['test_accuracy'] for run in runs], 2)} | {row['rate']:g} "
            f"| {_flops(costs)} "
            f"| {100 * costs['step_head_flops'] / costs['step_flops']:.1f} | {heads:,} |"
        )
    counted = result["counted"]
    lines += [
        f"| *each character by the one before, counted* | {counted['pair']:.3f} | | | | | |",
        f"| *each character by itself, counted* | {counted['character']:.3f} | | | | | |",
    ]
    floor = ""
    if result["floor"] is not None:
        lines.append(f"| *the source itself* | {result['floor']:.3f} | | | | | |")
        floor = (
            " The first characters of a window have little before them, so a model of windows "
            "stays above the source's perplexity."
        )
    return (
        "\n".join(lines)
        + "\n\nMean ± standard deviation over the seeds, at the end of training. FLOPs of a "
        "training step are ratios to backpropagation's. `LastBlock` trains the last normalisation "
        f"and the classifier; all before stays random.{floor} {result['cpu']}, torch "
        f"{result['torch']}.\n\n" + _commands([result["command"]])
    )


def _streams(result: dict[str, Any]) -> str:
    """At the start of training and at its end, after every block but the last."""
    lines = [
        "### The residual stream\n",
        "| rule, English | step | perplexity, validation | norm of a token after each block "
        "| effective rank | angle to backpropagation's gradient, degrees |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    of: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        of.setdefault(row["rule"], []).append(row)
    for name, rows in of.items():
        for k in (0, -1):
            found = [row["steps"][k] for row in rows]
            cells = [
                "; ".join(_of_seeds(of_block, 0) for of_block in zip(*values, strict=True))
                for values in ([one[key] for one in found] for key in ("norm", "rank", "angle"))
            ]
            perplexities = _of_seeds([one["perplexity"] for one in found], 1)
            lines.append(f"| {name} | {found[0]['step']} | {perplexities} | {' | '.join(cells)} |")
    return (
        "\n".join(lines) + "\n\nMean ± standard deviation over "
        f"{len(rows)} seeds. {result['cpu']}, torch {result['torch']}.\n\n"
        + _commands([result["command"]])
    )


def _flops(costs: dict[str, Any]) -> str:
    """Of a step, beside backpropagation's."""
    return f"{costs['step_flops'] / costs['backprop_flops']:.2f}"


def _of_seeds(found: Sequence[float], places: int) -> str:
    spread = f" ± {statistics.stdev(found):.{places}f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.{places}f}{spread}"


def _spread(row: dict[str, Any], which: str) -> str:
    return _of_seeds([100 * accuracy[which] for accuracy in row["test_accuracy"]], 2)


def _stages(result: dict[str, Any]) -> str:
    about = (
        f"{result['cpu']}, torch {result['torch']}, float32; each process has one thread and a "
        f"core of its own.\n\n{_commands([result['command']])}"
    )
    if "networks" in result:
        lines = [
            "Over a link between two hosts (network namespaces with a cable):\n",
            "| network | a batch sends | | free link, /s | 1 Gb/s, /s | kept |",
            "|---|--:|---|--:|--:|--:|",
        ]
        for network, found in result["networks"].items():
            rates = {row["name"]: row["per_second"] for row in found["contenders"]}
            for name in dict.fromkeys(n.rpartition(", ")[0] for n in rates):
                free, slow = rates[f"{name}, free"], rates[f"{name}, slow"]
                lines.append(
                    f"| {network} | {found['sends_bytes'] / 1e6:.1f} MB | {name} "
                    f"| {statistics.median(free):.1f} | {statistics.median(slow):.1f} "
                    f"| {_ratio(slow, free)} |"
                )
        return "\n".join([*lines, "", about])
    rates = {row["name"]: row["per_second"] for row in result["contenders"]}
    ours = rates["local rule, 2 stages"]
    lines = [
        f"{result['title']}, batch of {result['batch']} in all, local blocks: {result['blocks']}, "
        f"heads {result['heads']}; pipelines with {result['microbatches']} microbatches:\n",
        f"| | {result['unit']}/s | two stages are faster by | memory of a process, MB |",
        "|---|--:|--:|--:|",
    ]
    lines += [
        f"| {row['name']} | {statistics.median(row['per_second']):.1f} "
        f"| {_ratio(ours, row['per_second'])} | {_megabytes(row['rss_bytes'])} |"
        for row in result["contenders"]
    ]
    predicted = result["predicted_per_second"]["2"]
    return (
        "\n".join(lines)
        + f"\n\n`layerwise plan` expects {predicted:.1f} {result['unit']}/s of two stages. Ratios "
        f"are the median of {len(ours)} rounds' (lowest to highest); memory is the largest "
        f"process's resident set at its peak, Python and torch with it.\n\n{about}"
    )


def _megabytes(processes: list[int]) -> str:
    return f"{max(processes) / 1e6:.0f}" if processes else "-"


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def _probes(found: dict[str, Any]) -> str:
    """Linear probes' test accuracy in %, mean and standard deviation over seeds; the last two
    columns are differences seed by seed."""
    of: dict[str, dict[int, list[float]]] = {}
    for result in (result for run in found["runs"] for result in run["results"]):
        of.setdefault(result["contender"], {})[result["seed"]] = [
            100 * a for a in result["accuracy"]
        ]
    base = ("random fixed blocks", "untrained")
    lines = [
        f"| {found['data']}, linear probe after | {' | '.join(found['blocks'])} | seeds | "
        f"{found['blocks'][-1]} above {base[0]} | above {base[1]} |",
        "|---|" + "--:|" * (len(found["blocks"]) + 3),
    ]
    for name, seeds in of.items():
        cells = [_of_seeds(block, 1) for block in zip(*seeds.values(), strict=True)]
        cells.append(str(len(seeds)))
        kind = ", patches" if name.endswith(", patches") else ""
        for other in (of.get(b + kind, {}) for b in base):
            above = [seeds[seed][-1] - other[seed][-1] for seed in sorted(seeds.keys() & other)]
            own = name.removesuffix(kind) in base
            cells.append("" if own or not above else _of_seeds(above, 1))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    given, made = found["given"], {f"{r['cpu']}, torch {r['torch']}" for r in found["runs"]}
    images = f", {given['images']} training images" if given["images"] else ""
    return (
        "\n".join(lines)
        + f"\n\nTest accuracy in %, {given['epochs']} epochs{images}; blocks learn without labels, "
        f"probes on the frozen output averaged down to {given['pool']}x{given['pool']}; patches of "
        f"{given['patch']}x{given['patch']} pixels, half overlapping. "
        f"{'; '.join(sorted(made))}.\n\n{_commands([r['command'] for r in found['runs']])}"
    )


def _data(results: list[dict[str, Any]]) -> str:
    lines = ["| augmentation | memory format | threads | images/s |", "|---|---|--:|--:|"]
    for r in results:
        kinds = ("flip", "crop", "resized_crop", "cutout")
        augment = [
            k if v is True else f"{k} {v}" for k, v in r["augment"].items() if k in kinds and v
        ]
        form = "channels_last" if r["channels_last"] else "contiguous"
        lines.append(
            f"| {', '.join(augment) or 'none'} | {form} | {r['threads']} | {r['images_per_s']:,} |"
        )
    shape = "x".join(map(str, results[0]["shape"]))
    return (
        "\n".join(lines)
        + f"\n\nImages of {shape}, batches of {results[0]['batch_size']}, {results[0]['cpu']}, "
        f"torch {results[0]['torch']}.\n\n{_commands([r['command'] for r in results])}"
    )


def _commands(commands: list[str]) -> str:
    return "\n".join(["```", *commands, "```\n"])


def main() -> None:
    pages = {PAGE: page(), README: readme()}
    if ZOO.exists():
        pages[NETWORKS] = networks(json.loads(ZOO.read_text()))
    for path, text in pages.items():
        if sys.argv[1:] != ["--check"]:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"{path.name} is not what benchmarks/results/ gives; run `make tables`")


if __name__ == "__main__":
    main()
