"""A small causal transformer on text: rules compared by perplexity, and with that of the source.

    python benchmarks/text.py                         the generated language `markov`: minutes
    python benchmarks/text.py --data python-topics    English: the help texts of this Python
    python benchmarks/text.py --norm_last             layers that end with their normalisation
    python benchmarks/text.py --layers 6              six layers instead of two
    python benchmarks/text.py --only dfa dgl          only these rules; `--train` writes no file

Each rule trains with every learning rate of the list on the first three seeds, because a rule with
random feedback depends much on its matrices. The rate with the lowest mean validation perplexity
then trains the other seeds, and the test perplexities at the end of training are reported. Finished
trainings lie in a folder under `experiments/` and are not repeated, so several calls may share the
work by `--only`. Everything goes into `results/text-DATA.json`, together with the perplexity of the
source if it is known, and those of two counting models: one of single characters, and one of pairs
of characters, both counted on the training part.
"""

from __future__ import annotations

import argparse
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
from torch import Tensor

from layerwise import Blocks, cut, data, heads, models, rules
from layerwise.costs.blocks import Costs
from layerwise.data import Loader, Splits, Text
from layerwise.rules.base import Rule
from layerwise.runs.metrics import Metrics, perplexity
from layerwise.runs.provenance import provenance
from layerwise.trainer.optim import AdamW, OneCycle

RESULTS = Path(__file__).parent / "results"
SEARCHED = 3
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


@dataclasses.dataclass(frozen=True)
class Budget:
    """What all rules share. The network has a block for each layer, the first with the embedding,
    and one for the last normalisation and the classifier."""

    context: int = 32
    layers: int = 2
    width: int = 64
    norm_first: bool = True
    batch_size: int = 16
    steps: int = 1124


def rule_of(name: str, splits: Splits, budget: Budget, seed: int) -> Rule:
    torch.manual_seed(seed)
    network = models.gpt(
        splits.shape,
        splits.num_classes,
        budget.layers,
        budget.width,
        norm_first=budget.norm_first,
    )
    at = [f"layer{i}" for i in range(2, budget.layers + 1)]
    example = torch.zeros(2, *splits.shape, dtype=torch.long)
    return RULES[name](cut(network, at=[*at, "classifier"], example=example))


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


def search(
    name: str, rates: list[float], seeds: list[int], splits: Splits, budget: Budget, runs: Path
) -> dict[str, Any]:
    """Search the learning rate, train the other seeds, and return the rule's row."""

    def trained(rate: float, seed: int) -> dict[str, Any]:
        path = runs / f"{name}-{rate:g}-{seed}.json"
        if not path.exists():
            found = train(name, rate, seed, splits, budget)
            path.write_text(json.dumps(found) + "\n")
            print(f"{path.stem}: validation {found['validation']:.3f}, {found['cpu_s']:.1f} s")
        return json.loads(path.read_text())

    tried = {
        rate: statistics.mean(trained(rate, seed)["validation"] for seed in seeds[:SEARCHED])
        for rate in rates
    }
    rate = min(tried, key=lambda r: tried[r])
    costs = Costs.of(rule_of(name, splits, budget, seeds[0]))
    return {
        "rule": name,
        "searched": {f"{r:g}": found for r, found in tried.items()},
        "rate": rate,
        "searched_seeds": seeds[:SEARCHED],
        "seeds": seeds,
        "runs": [trained(rate, seed) for seed in seeds],
        "costs": json.loads(costs.json()),
    }


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
    parser.add_argument("--only", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--norm_last", action="store_true")
    parser.add_argument("--layers", type=int, default=Budget.layers)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--train", action="store_true", help="train only; write nothing")
    given = parser.parse_args()
    budget = Budget(layers=given.layers, norm_first=not given.norm_last)
    kind = given.data + ("-norm-last" if given.norm_last else "")
    kind += f"-{given.layers}-layers" if given.layers != Budget.layers else ""
    runs = Path("experiments") / f"text-{kind}"
    runs.mkdir(parents=True, exist_ok=True)
    name, version = given.data, None
    if name == "python-topics":
        name, version = english(runs), sys.version.split()[0]
    splits = data.load(name, context=budget.context)
    rows = [search(rule, given.rates, given.seeds, splits, budget, runs) for rule in given.only]
    if given.train:
        return
    rate = splits.entropy_rate
    result = {
        "benchmark": "text",
        **provenance(),
        "data": given.data,
        "of_python": version,
        "budget": dataclasses.asdict(budget),
        "vocabulary": splits.num_classes,
        "windows": {"train": len(splits.train), "test": len(splits.test)},
        "entropy_rate": rate,
        "floor": None if rate is None else perplexity(rate),
        "counted": counted(splits),
        "rows": rows,
    }
    out = RESULTS / f"text-{kind}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
