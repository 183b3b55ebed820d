"""Numbers in prose, taken from benchmarks/results/.

A story has `{{QUERY}}` where its card has the number. The guide and the README keep the number
between comments, `<!-- figure: QUERY -->72.4 ± 0.2<!-- /figure -->`, and `make tables` rewrites it
in place. A query is the name of a function below and its arguments, with quotes around an argument
that has spaces; the last argument may be `places=N`, the number of decimals:

    accuracy SETTING RULE       test accuracy in % after the last epoch (benchmarks/all_rules.py)
    points SETTING RULE RULE    by how many points the second rule's is higher
    flops SETTING RULE          FLOPs of a step, as a ratio to backpropagation's; so are
    time, memory SETTING RULE   time and memory
    head_parameters SETTING RULE    the heads' parameters, as a ratio to the network's
    run FILE NAME               test accuracy in % after the last epoch (benchmarks/accuracy.py): of
                                the run of that name, or else of those whose seeds follow it
    over_views FILE NAME        the same with class scores averaged over views of each image
    run_flops FILE NAME         FLOPs of a step, as a ratio to backpropagation's
    behind FILE NAME OTHER      by how many points that of another run, or of other seeds, is higher
    highest FILE NAME           highest test accuracy of any epoch in %
    apart FILE NAME SERIES      by how many points a published series of that file's reference is
                                above a run's test accuracy at equal steps, from least to most
    gain FILE NAME OTHER        the same of another run, at equal epochs
    train_accuracy FILE NAME    training accuracy in % after the last epoch
    epochs FILE NAME            how many epochs
    perplexity FILE RULE        test perplexity (benchmarks/text.py)
    equal RULE KIND             test perplexity of six layers at equal steps, flops or time
                                (benchmarks/text.py --equal)
    source FILE                 perplexity of the text's source
    stream RULE MEASURE BLOCK   at the end of training: norm, rank or angle (benchmarks/streams.py)
    probe FILE CONTENDER BLOCK  linear probe's test accuracy in % (benchmarks/selfsupervised.py)
    above FILE CONTENDER BASE   points above a base after the last block, seed by seed
    step FILE CONTENDER MEASURE time, cpu_time, flops or peak_bytes of a step, as a ratio to the
                                first contender's; over=NAME for another one (layerwise bench step)
    faster FILE CONTENDER       how many times as fast two stages are (benchmarks/stages.py);
                                by=NAME for another contender than these
    best FILE                   the same, of the fastest pipeline and backprop with two threads
    exit FILE RULE THRESHOLD MEASURE    accuracy in % or flops, as a ratio to the full network's, of
                                early exits that decide; of the full network where the threshold
                                is "full" (benchmarks/early_exits.py)
    least FILE FAMILY LIMIT MEASURE     bytes or time of a step, as a ratio to backprop's, of the
                                way with the least memory at no more than LIMIT of its time
    copied T KIND               longest sequence copied (benchmarks/sequences.py); KIND is truncated
                                or synthetic, and T 0 for whole sequences; N R with
                                task=repeat-copy
    observed FACTOR MEASURE LOOK    bits, explained or cosine at a look at the synthesizer
    written RULE WAY            tokens per second of a way to generate text, as a ratio to the full
                                network's (benchmarks/early_exits.py)
    gap_spread                  the largest standard deviation over the seeds of any of these ways
    gap WAY WAY                 by how many points the first way to train isolated residual blocks
                                is higher than the second (benchmarks/residual_gap.py)
    recompressed QUALITY        mean squared change of a training image's values (0 to 255) by one
                                more compression (benchmarks/recompress.py)
    networks                    how many networks docs/networks.md lists
"""

from __future__ import annotations

import re
import shlex
import statistics
from collections.abc import Callable
from typing import Any

from layerwise.costs import StepTable
from layerwise.costs.ways import BACKPROP, LOCAL
from layerwise.report.reference import Reference
from pages import all_rules, probes, residual_gap, sequences, stages, steps
from pages.files import RESULTS, result
from pages.spread import mean


def accuracy(setting: str, rule: str, places: int = 1) -> str:
    return all_rules.accuracy(all_rules.rows(setting)[rule], "last", places)


def points(setting: str, rule: str, higher: str, places: int = 1) -> str:
    rows = all_rules.rows(setting)
    means = [
        statistics.mean(100 * found["last"] for found in rows[name]["test_accuracy"])
        for name in (rule, higher)
    ]
    return f"{means[1] - means[0]:.{places}f}"


def flops(setting: str, rule: str, places: int = 2) -> str:
    costs = all_rules.rows(setting)[rule]["costs"]
    return f"{costs['step_flops'] / costs['backprop_flops']:.{places}f}"


def time(setting: str, rule: str, places: int = 2) -> str:
    of = "checkpointing_times_s" if rule == "checkpointing" else "times_s"
    step = all_rules.rows(setting)["backprop" if rule == "checkpointing" else rule]["step"]
    times = zip(step[of], step["backprop_times_s"], strict=True)
    return f"{statistics.median(a / b for a, b in times):.{places}f}"


def memory(setting: str, rule: str, places: int = 2) -> str:
    of = "checkpointing_bytes" if rule == "checkpointing" else "bytes"
    step = all_rules.rows(setting)["backprop" if rule == "checkpointing" else rule]["step"]
    return f"{step[of] / step['backprop_bytes']:.{places}f}"


def head_parameters(setting: str, rule: str, places: int = 1) -> str:
    row = all_rules.rows(setting)[rule]
    network = sum(block["parameters"] for block in row["costs"]["blocks"])
    return f"{all_rules.head_parameters(row) / network:.{places}f}"


def run(file: str, name: str, places: int = 1) -> str:
    return mean(_last(file, name), places)


def over_views(file: str, name: str, places: int = 1) -> str:
    found = [100 * of_run["accuracy_over_views"] for of_run in _runs(file, name)]
    return mean(found, places)


def run_flops(file: str, name: str, places: int = 2) -> str:
    costs = _runs(file, name)[0]["costs"]
    return f"{costs['step_flops'] / costs['backprop_flops']:.{places}f}"


def behind(file: str, name: str, other: str, places: int = 1) -> str:
    difference = statistics.mean(_last(file, other)) - statistics.mean(_last(file, name))
    return f"{difference:.{places}f}"


def _last(file: str, name: str) -> list[float]:
    return [100 * of_run["metrics"][-1]["test_accuracy"] for of_run in _runs(file, name)]


def highest(file: str, name: str, places: int = 1) -> str:
    [of_run] = _runs(file, name)
    return f"{100 * max(row['test_accuracy'] for row in of_run['metrics']):.{places}f}"


def apart(file: str, name: str, series: str, places: int = 1) -> str:
    [of_run] = _runs(file, name)
    found = Reference.read(file).distances({series: of_run["metrics"]})
    return _range([-d.difference for d in found if d.column == "test_accuracy"], places)


def gain(file: str, name: str, other: str, places: int = 1) -> str:
    [base], [found] = _runs(file, name), _runs(file, other)
    pairs = zip(base["metrics"], found["metrics"], strict=False)
    return _range([100 * (b["test_accuracy"] - a["test_accuracy"]) for a, b in pairs], places)


def _range(points: list[float], places: int) -> str:
    return f"{min(points):+.{places}f} to {max(points):+.{places}f}"


def train_accuracy(file: str, name: str, places: int = 0) -> str:
    return mean([100 * r["metrics"][-1]["train_accuracy"] for r in _runs(file, name)], places)


def epochs(file: str, name: str) -> str:
    [of_run] = _runs(file, name)
    return str(len(of_run["metrics"]))


def perplexity(file: str, rule: str, places: int = 2) -> str:
    [row] = [row for row in result(f"text-{file}")["rows"] if row["rule"] == rule]
    return mean([of_run["test"] for of_run in row["runs"]], places)


def equal(rule: str, kind: str, places: int = 2) -> str:
    [row] = [
        r for r in result("equal-python-topics-6-layers-width-32")["rows"] if r["rule"] == rule
    ]
    return mean([of_run["test"] for of_run in row["runs"][kind]], places)


def source(file: str, places: int = 3) -> str:
    return f"{result(f'text-{file}')['floor']:.{places}f}"


def stream(rule: str, measure: str, block: str, places: int = 0) -> str:
    rows = [row for row in result("streams")["rows"] if row["rule"] == rule]
    return f"{statistics.mean(row['steps'][-1][measure][int(block)] for row in rows):.{places}f}"


def probe(file: str, contender: str, block: str, places: int = 1) -> str:
    of_seeds = probes.accuracies(result(f"probe-{file}"))[contender].values()
    return f"{statistics.mean(of_blocks[int(block)] for of_blocks in of_seeds):.{places}f}"


def above(file: str, contender: str, base: str, places: int = 1) -> str:
    of = probes.accuracies(result(f"probe-{file}"))
    return mean(probes.above(of, contender, base), places)


def step(file: str, contender: str, measure: str, over: str = "", places: int = 2) -> str:
    table = StepTable.load(RESULTS / f"step-{file}.json")
    of = {measured.name: measured for measured in table.contenders}
    if over and measure == "time":
        times = zip(of[contender].times_s, of[over].times_s, strict=True)
        return f"{statistics.median(a / b for a, b in times):.{places}f}"
    if over:
        ratios = [table.ratios(of[name])[measure] for name in (contender, over)]
        return f"{ratios[0] / ratios[1]:.{places}f}"
    found = table.ratios(of[contender])[measure]
    return f"{found['median'] if isinstance(found, dict) else found:.{places}f}"


def faster(file: str, contender: str, by: str = "local rule, 2 stages", places: int = 2) -> str:
    rates = {row["name"]: row["per_second"] for row in result(f"stages-{file}")["contenders"]}
    both = zip(rates[by], rates[contender], strict=True)
    return f"{statistics.median(a / b for a, b in both):.{places}f}"


def best(file: str, places: int = 2) -> str:
    rates = {row["name"]: row["per_second"] for row in result(f"stages-{file}")["contenders"]}
    pipeline = stages.best_pipeline(rates)
    return faster(file, "backprop, 2 threads", by=pipeline, places=places)


def exit(file: str, rule: str, threshold: str, measure: str, places: int | None = None) -> str:
    [row] = [row for row in result(f"early-exits-{file}")["rows"] if row["rule"] == rule]
    found = []
    for of_run in row["runs"]:
        full = of_run["fixed"][-1]
        looks = {str(look["threshold"]): look for look in of_run["thresholds"]} | {"full": full}
        of = {"accuracy": 100, "flops": 1 / full["flops"]}[measure]
        found.append(of * looks[threshold][measure])
    return mean(found, (1 if measure == "accuracy" else 2) if places is None else places)


def least(file: str, family: str, limit: str, measure: str, places: int = 2) -> str:
    of_family = {"backprop": BACKPROP, "local": LOCAL}[family]
    found = steps.least(StepTable.load(RESULTS / f"step-{file}.json"), of_family, float(limit))
    if found is None:
        raise ValueError(family)
    return f"{found[measure]:.{places}f}"


def copied(window: str, kind: str, task: str = "copy", places: int = 1) -> str:
    rows = sequences.chosen(int(window) or None, kind == "synthetic", task)
    return f"{statistics.mean(sequences.written(row) for row in rows):.{places}f}"


def observed(factor: str, measure: str, look: str, places: int = 2) -> str:
    of_seeds = [looks[int(look)][measure] for looks in sequences.looks(float(factor))]
    return f"{statistics.mean(of_seeds):.{places}f}"


def written(rule: str, way: str, places: int = 1) -> str:
    [row] = [row for row in result("early-exits-text")["rows"] if row["rule"] == rule]
    times = {found["way"]: found["times_s"] for found in row["generated"]}
    both = zip(times["full"], times[way], strict=True)
    return f"{statistics.median(full / ours for full, ours in both):.{places}f}"


def gap(way: str, other: str, places: int = 1) -> str:
    found = residual_gap.ways()
    high, low = (statistics.mean(row["test_accuracy"] for row in found[w]) for w in (way, other))
    return f"{100 * (high - low):.{places}f}"


def gap_spread(places: int = 1) -> str:
    spreads = [
        statistics.stdev(row["test_accuracy"] for row in rows)
        for rows in residual_gap.ways().values()
        if len(rows) > 1
    ]
    return f"{100 * max(spreads):.{places}f}"


def recompressed(quality: str, places: int = 0) -> str:
    return f"{result(f'recompressed-{quality}')['change']['train']:.{places}f}"


def networks() -> str:
    return str(len(result("zoo")["rows"]))


QUERIES: dict[str, Callable[..., str]] = {
    query.__name__: query
    for query in (
        accuracy,
        points,
        flops,
        time,
        memory,
        head_parameters,
        run,
        over_views,
        run_flops,
        behind,
        highest,
        apart,
        gain,
        train_accuracy,
        epochs,
        perplexity,
        equal,
        source,
        stream,
        probe,
        above,
        step,
        faster,
        best,
        exit,
        least,
        copied,
        observed,
        written,
        gap,
        gap_spread,
        recompressed,
        networks,
    )
}


def _runs(file: str, name: str) -> list[dict[str, Any]]:
    """The run of that name, or else those whose seeds follow it."""
    runs = result(f"accuracy-{file}")["runs"]
    found = [of_run for of_run in runs if of_run["run"] == name] or [
        of_run for of_run in runs if of_run["run"] == f"{name}-{of_run['config']['seed']}"
    ]
    if not found:
        raise KeyError(name)
    return found


def figure(query: str) -> str:
    """The number that a query asks for.

    Raises:
        ValueError: no such query, or nothing in the results that it could mean.
    """
    name, *words = shlex.split(query)
    given = [word for word in words if not OPTION.match(word)]
    options = dict(word.split("=", 1) for word in words if OPTION.match(word))
    places = {"places": int(options.pop("places"))} if "places" in options else {}
    try:
        return QUERIES[name](*given, **options, **places)
    except (KeyError, TypeError, ValueError, FileNotFoundError) as error:
        raise ValueError(f"figure {query!r}: nothing in benchmarks/results/ for it") from error


OPTION = re.compile(r"(places|over|by|task)=")
IN_PLACE = re.compile(r"(<!-- figure: (.*?) -->).*?(<!-- /figure -->)", re.DOTALL)


def filled(text: str) -> str:
    """A page with its figures in place written anew."""
    return IN_PLACE.sub(lambda m: f"{m[1]}{figure(m[2])}{m[3]}", text)


def inserted(story: str) -> str:
    """A story with figures instead of its queries."""
    return re.sub(r"\{\{(.*?)\}\}", lambda m: figure(m[1]), story, flags=re.DOTALL)
