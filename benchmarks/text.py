"""A small causal transformer, or an LSTM, on text: rules by perplexity, and next to the source's.

    python benchmarks/text.py                         the generated language `markov`: minutes
    python benchmarks/text.py --data python-topics    English: the help texts of this Python
    python benchmarks/text.py --norm_last             layers that end with their normalisation
    python benchmarks/text.py --layers 6              six layers instead of two
    python benchmarks/text.py --network lstm --layers 3
                                                      layers of an LSTM, also with local critics
    python benchmarks/text.py --only dfa dgl          only these rules; `--train` writes no file
    python benchmarks/text.py --equal --layers 6      backpropagation, also with delayed gradients,
                                                      and DGL at equal steps, FLOPs and time

Each rule trains with every learning rate of the list on the first three seeds, because a rule with
random feedback depends much on its matrices. The rate with the lowest mean validation perplexity
then trains the other seeds, and the test perplexities at the end of training are reported. Finished
trainings lie in a folder under `experiments/` and are not repeated, so several calls may share the
work by `--only`. Everything goes into `results/text-DATA.json`, together with the perplexity of the
source if it is known, and those of two counting models: one of single characters, and one of pairs
of characters, both counted on the training part.

With `--equal`, the learning rate is searched at the FLOPs of `Backprop`'s training, by `--searched`
seeds. With this rate every rule trains for three numbers of steps: that of `Backprop`, that with
its FLOPs, and that with its time in two stages, if `Backprop` has the fastest of the pipeline
schedules. Times are simulated (`layerwise.costs.pipelines`) from the CPU times of blocks, which are
measured in turns, and from FLOPs alone. Everything goes into `results/equal-DATA.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor, nn

from layerwise import Blocks, cut, data, heads, models, rules
from layerwise.costs.blocks import Costs
from layerwise.costs.pipelines import DELAYED, SCHEDULES, pipelined
from layerwise.costs.stages import block_seconds, stage_starts
from layerwise.data import Loader, Splits, Text
from layerwise.rules.base import LocalRule, Rule
from layerwise.rules.delayed_gradient import correct_delay
from layerwise.runs.metrics import Metrics, perplexity
from layerwise.runs.provenance import provenance
from layerwise.trainer.optim import AdamW, OneCycle

RESULTS = Path(__file__).parent / "results"
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
RULES: dict[str, Callable[[Blocks], Rule]] = {
    "Backprop": rules.Backprop,
    "FeedbackAlignment": rules.FeedbackAlignment,
    "DirectFeedbackAlignment": rules.DirectFeedbackAlignment,
    "DirectFeedbackAlignment to layers": lambda b: rules.DirectFeedbackAlignment(b, layers=True),
    "DirectFeedbackAlignment, normalize": lambda b: rules.DirectFeedbackAlignment(
        b, normalize=True
    ),
    "DGL": lambda blocks: rules.DGL(blocks, head=heads.MLP(width=64)),
    "LastBlock": rules.LastBlock,
}
RIVALS: dict[str, Callable[[Blocks], Rule]] = {
    "Backprop": rules.Backprop,
    "DelayedGradient": rules.DelayedGradient,
    "DelayedGradient, error feedback": lambda b: rules.DelayedGradient(b, error_feedback=True),
    "DGL, MLP heads, 2 blocks": RULES["DGL"],
    # Heads of one transformer layer like the network's, the last normalisation and a projection.
    **{f"AugLocal, {k} blocks": lambda b: rules.AugLocal(b, depth=1) for k in (2, 3, 6)},  # type: ignore
}
RECURRENT: dict[str, Callable[[Blocks], Rule]] = {
    "Backprop": rules.Backprop,
    "DGL": RULES["DGL"],
    "LocalCritic": lambda blocks: rules.LocalCritic(blocks, head=heads.MLP(width=64)),
    "LastBlock": rules.LastBlock,
}
EQUAL = ("flops", "time", "steps")
MICROBATCHES = (1, 2, 4, 8, 16)
MEASURED = (1, 2, 4)  # with smaller micro-batches all schedules are slower
ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class Budget:
    """What all rules share. The network has a block for each layer, the first with the embedding.
    The transformer has one more for the last normalisation and the classifier, which the last layer
    of the LSTM has."""

    network: str = "gpt"
    context: int = 32
    layers: int = 2
    width: int = 64
    norm_first: bool = True
    batch_size: int = 16
    steps: int = 1124


def rule_of(name: str, splits: Splits, budget: Budget, seed: int, whole: bool = False) -> Rule:
    """The rule on its network; with `whole`, as one block."""
    torch.manual_seed(seed)
    sizes = splits.shape, splits.num_classes, budget.layers, budget.width
    recurrent = budget.network == "lstm"
    network: nn.Module = (
        models.lstm(*sizes) if recurrent else models.gpt(*sizes, norm_first=budget.norm_first)
    )
    if recurrent:
        at = [f"layers.{i}" for i in range(1, budget.layers)]
    elif name.endswith(" blocks"):  # with as many layers in each; the last has the classifier
        size = budget.layers // int(name.split()[-2])
        at = [f"layer{i}" for i in range(1 + size, budget.layers + 1, size)]
    else:
        at = [*(f"layer{i}" for i in range(2, budget.layers + 1)), "classifier"]
    example = torch.zeros(2, *splits.shape, dtype=torch.long)
    return {**RULES, **RIVALS, **RECURRENT}[name](
        cut(network, at=[] if whole else at, example=example)
    )


def train(
    name: str,
    rate: float,
    seed: int,
    splits: Splits,
    budget: Budget,
    look: Callable[[int, Rule], None] = lambda step, rule: None,
) -> dict[str, Any]:
    """Validation and test perplexity of one training, infinite if it broke down. `look` is called
    with the rule before every step and after the last."""
    rule = rule_of(name, splits, budget, seed)
    optimizer = AdamW(lr=rate, weight_decay=0.0)(rule.parameters())
    if isinstance(rule, rules.DelayedGradient) and rule.error_feedback:
        correct_delay(optimizer)
    loader = Loader(splits.train, budget.batch_size, train=True, seed=seed)
    factor = OneCycle().factor(budget.steps, len(loader))
    began = time.process_time()
    for step in range(budget.steps):
        epoch, batch = divmod(step, len(loader))
        if batch == 0:
            batches = loader.epoch(epoch)
        look(step, rule)
        x, y = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = rate * factor(step)
        optimizer.zero_grad()
        rule.backward(x, y)
        optimizer.step()
    look(budget.steps, rule)
    found = {"rule": name, "rate": rate, "seed": seed, "cpu_s": time.process_time() - began}
    for part in ("validation", "test"):
        loss, accuracy = evaluate(rule, getattr(splits, part))
        found[part] = perplexity(loss) if math.isfinite(loss) else math.inf
        found[f"{part}_accuracy"] = accuracy
    return found


@torch.no_grad()
def evaluate(rule: Rule, part: Text) -> tuple[float, float]:
    """Mean nats per token, and the share of correct predictions."""
    rule.eval()
    tally = Metrics(1)
    for x, y in Loader(part, 250, train=False).epoch(0):
        scores = rule(x)
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), y.flatten())
        tally.add([loss], [scores], y)
    return tally.losses()[0] or 0.0, tally.accuracies()[0] or 0.0


def path_of(name: str, rate: float, seed: int, budget: Budget, runs: Path) -> Path:
    steps = "" if budget.steps == Budget.steps else f"-{budget.steps}-steps"
    return runs / f"{name}-{rate:g}-{seed}{steps}.json"


def trained(
    name: str, rate: float, seed: int, splits: Splits, budget: Budget, runs: Path
) -> dict[str, Any]:
    """What `train` found, from its file if that exists."""
    path = path_of(name, rate, seed, budget, runs)
    if not path.exists():
        found = train(name, rate, seed, splits, budget)
        path.write_text(json.dumps(found) + "\n")
        print(
            f"{path.stem}: validation {found['validation']:.3f}, {found['cpu_s']:.1f} s", flush=True
        )
    return json.loads(path.read_text())


def search(
    name: str,
    rates: list[float],
    seeds: list[int],
    searched: int,
    splits: Splits,
    budget: Budget,
    runs: Path,
) -> dict[str, Any]:
    """Search the learning rate, train the other seeds, and return the rule's row."""
    tried = {
        rate: statistics.mean(
            trained(name, rate, seed, splits, budget, runs)["validation"]
            for seed in seeds[:searched]
        )
        for rate in rates
    }
    rate = min(tried, key=lambda r: tried[r])
    costs = Costs.of(rule_of(name, splits, budget, seeds[0]))
    return {
        "rule": name,
        "searched": {f"{r:g}": found for r, found in tried.items()},
        "rate": rate,
        "searched_seeds": seeds[:searched],
        "seeds": seeds,
        "runs": [trained(name, rate, seed, splits, budget, runs) for seed in seeds],
        "costs": json.loads(costs.json()),
    }


def stage_times(names: list[str], splits: Splits, budget: Budget) -> dict[str, dict[str, Any]]:
    """Of each rule in two stages: simulated seconds of a step in each round, and by FLOPs (in units
    of half a serial step of backpropagation); the best schedule of `Backprop` in both cases."""
    x, y = next(Loader(splits.train, budget.batch_size, train=True, seed=0).epoch(0))
    made = {name: rule_of(name, splits, budget, 0) for name in names}
    one = rule_of("Backprop", splits, budget, 0, whole=True)
    flops = {name: _block_flops(rule) for name, rule in made.items()}
    unit = sum(_block_flops(rule_of("Backprop", splits, budget, 0))) / 2
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for _ in range(ROUNDS):
        for name, rule in made.items():
            for micro in MEASURED if name == "Backprop" else (1,):
                rows = len(x) // micro
                part = x[:rows], y[:rows]
                seconds = block_seconds(rule, *part, clock=time.process_time)
                scale = float(micro)
                if not isinstance(rule, LocalRule):  # a stage pays for its ends, not for each layer
                    [whole] = block_seconds(one, *part, clock=time.process_time)
                    scale *= whole / sum(seconds)
                whole_s = [scale * s for s in seconds]
                for way, step_s in in_two(rule, whole_s, micro).items():
                    found[name].setdefault(way, []).append(step_s)
    return {
        name: {
            "seconds": {way: found[name][way] for way in found[name]},
            "by_flops": {
                way: step / unit
                for micro in (MICROBATCHES if name == "Backprop" else (1,))
                for way, step in in_two(rule, flops[name], micro).items()
            },
        }
        for name, rule in made.items()
    }


def in_two(rule: Rule, blocks: list[float], micro: int) -> dict[str, float]:
    """The time of a step in two stages from those of blocks, under every way to run the rule."""
    if isinstance(rule, LocalRule):
        starts = stage_starts(blocks, 2)
        return {"stages": max(sum(blocks[: starts[1]]), sum(blocks[starts[1] :]))}
    free = [0.0] * len(blocks)
    if isinstance(rule, rules.DelayedGradient):
        return {DELAYED: pipelined(DELAYED, blocks, free, 2, micro).seconds}
    found = {}
    for schedule in SCHEDULES:
        with contextlib.suppress(ValueError):  # it needs another number of micro-batches
            found[f"{schedule}, {micro}"] = pipelined(schedule, blocks, free, 2, micro).seconds
    return found


def _block_flops(rule: Rule) -> list[float]:
    """FLOPs of each block's part of a step, with its head; backward is twice forward."""
    return [3.0 * (block.flops + block.head_flops) for block in Costs.of(rule).blocks]


def at_equal(
    equal: list[str],
    names: list[str],
    rates: list[float],
    seeds: list[int],
    searched: int,
    splits: Splits,
    budget: Budget,
    runs: Path,
    finished: bool,
) -> list[dict[str, Any]]:
    """Rows of rules that train for equal steps, FLOPs and time; after the search only those of
    `finished` trainings."""
    path = runs / "stage-times.json"
    if not path.exists():
        path.write_text(json.dumps(stage_times(list(RIVALS), splits, budget), indent=1))
    times = json.loads(path.read_text())
    rows = []
    for name in names:
        costs = Costs.of(rule_of(name, splits, budget, 0))
        steps = {
            "steps": budget.steps,
            "flops": round(budget.steps * costs.backprop_flops / costs.step_flops),
            "time": round(budget.steps * fastest(times["Backprop"]) / fastest(times[name])),
        }
        of = {what: dataclasses.replace(budget, steps=many) for what, many in steps.items()}
        row = search(name, rates, seeds[:searched], searched, splits, of["flops"], runs)
        del row["runs"]
        row["steps"], row["times"] = steps, times[name]
        row["runs"] = {
            what: [
                trained(name, row["rate"], seed, splits, of[what], runs)
                for seed in seeds
                if not finished or path_of(name, row["rate"], seed, of[what], runs).exists()
            ]
            for what in equal
        }
        rows.append(row)
    return rows


def fastest(times: dict[str, Any]) -> float:
    """Median seconds of a step under the fastest way."""
    return min(map(statistics.median, times["seconds"].values()))


def english(folder: Path) -> str:
    """Write the help texts of this Python into the folder; returns their name as data."""
    path = folder / "topics.txt"
    path.write_text("\n".join(topics[topic] for topic in sorted(topics)), encoding="utf-8")
    return f"text:{path}"


def counted(splits: Splits) -> dict[str, float]:
    """Test perplexities of two counting models: training counts, each increased by one."""
    train, test = splits.train, splits.test
    assert isinstance(train, Text)
    assert isinstance(test, Text)
    x, y = test.windows(torch.arange(len(test)))
    pairs = _counts(train.tokens.long(), splits.num_classes)
    alone, after = pairs.sum(0) / pairs.sum(), pairs / pairs.sum(1, keepdim=True)
    return {
        "character": perplexity(-alone[y].log().mean().item()),
        "pair": perplexity(-after[x, y].log().mean().item()),
    }


def _counts(tokens: Tensor, many: int) -> Tensor:
    """How often each token follows each, plus one: (from, to)."""
    pairs = torch.bincount(tokens[:-1] * many + tokens[1:], minlength=many * many)
    return pairs.double().view(many, many) + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=("markov", "python-topics"), default="markov")
    parser.add_argument("--only", nargs="+", choices={**RULES, **RIVALS, **RECURRENT})
    parser.add_argument("--network", choices=("gpt", "lstm"), default=Budget.network)
    parser.add_argument("--equal", nargs="*", choices=EQUAL, help="steps, FLOPs, time; default all")
    parser.add_argument("--steps", type=int, default=Budget.steps)
    parser.add_argument("--width", type=int, default=Budget.width)
    parser.add_argument("--norm_last", action="store_true")
    parser.add_argument("--layers", type=int, default=Budget.layers)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--searched", type=int, default=3, help="seeds of the search")
    parser.add_argument("--finished", action="store_true", help="after a search, train nothing")
    parser.add_argument("--train", action="store_true", help="train only; write nothing")
    given = parser.parse_args()
    budget = Budget(
        network=given.network,
        layers=given.layers,
        width=given.width,
        steps=given.steps,
        norm_first=not given.norm_last,
    )
    kind = given.data + ("-norm-last" if given.norm_last else "")
    kind += f"-{given.network}" if given.network != Budget.network else ""
    kind += f"-{given.layers}-layers" if given.layers != Budget.layers else ""
    kind += f"-width-{given.width}" if given.width != Budget.width else ""
    runs = Path("experiments") / f"text-{kind}"
    runs.mkdir(parents=True, exist_ok=True)
    name, version = given.data, None
    if name == "python-topics":
        name, version = english(runs), sys.version.split()[0]
    splits = data.load(name, context=budget.context)
    usual = RECURRENT if given.network == "lstm" else RULES
    names = given.only or list(usual if given.equal is None else RIVALS)
    shared = given.rates, given.seeds, given.searched, splits, budget, runs
    if given.equal is None:
        rows = [search(name, *shared) for name in names]
    else:
        rows = at_equal(given.equal or list(EQUAL), names, *shared, given.finished)
    if given.train:
        return
    rate = splits.entropy_rate
    result = {
        "benchmark": "text" if given.equal is None else "equal",
        **provenance(),
        "data": given.data,
        "of_python": version,
        "budget": dataclasses.asdict(budget),
        "seeds": given.seeds,
        "vocabulary": splits.num_classes,
        "windows": {"train": len(splits.train), "test": len(splits.test)},
        "entropy_rate": rate,
        "floor": None if rate is None else perplexity(rate),
        "counted": counted(splits),
        "rows": rows,
    }
    out = RESULTS / f"{result['benchmark']}-{kind}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
