"""A small causal transformer on text: rules by their perplexity, beside what the source allows.

    python benchmarks/text.py                         the generated language `markov`: minutes
    python benchmarks/text.py --data python-topics    English: the help texts of this Python
    python benchmarks/text.py --only dfa              these alone; `--train` writes no file

Each rule trains with every learning rate of the list on the first seed; the one with the lowest
validation perplexity then trains the other seeds, and test perplexities are reported. Runs that are
there are left alone. Everything goes into `results/text-DATA.json`, with the perplexity of the
source where it is known, and those of a model that knows only how often each character comes, and
of one that knows how often each follows another, both counted on the training part.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor

from layerwise import environment
from layerwise.cli import main as layerwise
from layerwise.cost import Costs
from layerwise.data import Splits, Text
from layerwise.experiment import build, load_data
from layerwise.run import Run
from layerwise.tally import perplexity, selected_by

RESULTS = Path(__file__).parent / "results"
OPTIONS = (
    "--model gpt --model.layers 2 --model.width 64 --model.heads 4 --at [layer2,classifier] "
    "--data.context 32 --batch_size 16 --epochs 1 --optimizer AdamW --optimizer.weight_decay 0 "
    "--schedule OneCycle"
)
RATES = (3e-3, 1e-2, 3e-2)
RULES = {
    "backprop": "--rule Backprop",
    "fa": "--rule FeedbackAlignment",
    "dfa": "--rule DirectFeedbackAlignment",
    "dgl": "--rule DGL --rule.head MLP --rule.head.width 64",
    "head-alone": "--rule LastBlock",
}


def train(rule: str, rate: float, seed: int, data: str, runs: Path) -> Run:
    """The run of a rule at a learning rate; trained where it is not there yet."""
    path = runs / f"{rule}-{rate:g}-{seed}"
    if not (path / "model.safetensors").exists():
        arguments = ["--resume", str(path)]
        if not (path / "config.yaml").exists():
            arguments = [*shlex.split(OPTIONS), *shlex.split(RULES[rule]), "--data", data]
            arguments += ["--optimizer.lr", str(rate), "--seed", str(seed)]
            arguments += ["--runs", str(runs), "--name", path.name]
        code = layerwise(["train", *arguments])
        if code == 130:
            raise KeyboardInterrupt
        if code:  # such as a loss that is not finite: it counts as the worst
            print(f"{path.name}: exit code {code}")
    return Run.open(str(path))


def validation(run: Run) -> float:
    """The lowest validation perplexity of an epoch; infinite where none was finished."""
    return min(
        (row["validation_perplexity"] or torch.inf for row in run.metrics()), default=torch.inf
    )


def search(rule: str, seeds: list[int], data: str, runs: Path) -> dict[str, Any]:
    """Search, train, and what came out."""
    tried = {rate: train(rule, rate, seeds[0], data, runs) for rate in RATES}
    rate = min(tried, key=lambda r: validation(tried[r]))
    chosen = [train(rule, rate, seed, data, runs) for seed in seeds]
    rows = []
    for run in chosen:
        best = max(run.metrics(), key=lambda row: selected_by(row) or -torch.inf)
        rows.append({key: best[f"test_{key}"] for key in ("perplexity", "loss", "accuracy")})
    return {
        "rule": rule,
        "command": RULES[rule],
        "searched": {f"{r:g}": validation(run) for r, run in tried.items()},
        "rate": rate,
        "seeds": seeds,
        "test": rows,
        "costs": json.loads(Costs.of(build(chosen[0].config).rule).json()),
    }


def counted(splits: Splits) -> dict[str, float]:
    """Test perplexities of the two smallest models: counts in training, and one more of each."""
    train, test = splits.train, splits.test
    assert isinstance(train, Text)
    assert isinstance(test, Text)
    many = splits.num_classes
    x, y = test.windows(torch.arange(len(test)))
    pairs = _counts(train.tokens, many)
    alone, after = pairs.sum(0) / pairs.sum(), pairs / pairs.sum(1, keepdim=True)
    return {
        "character": perplexity(-alone[y].log().mean().item()),
        "pair": perplexity(-after[x, y].log().mean().item()),
    }


def _counts(tokens: Tensor, many: int) -> Tensor:
    """How often each follows each, and one: (from, to)."""
    tokens = tokens.long()
    pairs = torch.bincount(tokens[:-1] * many + tokens[1:], minlength=many * many)
    return pairs.double().view(many, many) + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=("markov", "python-topics"), default="markov")
    parser.add_argument("--only", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--train", action="store_true", help="train only; write nothing")
    given = parser.parse_args()
    runs = given.runs or Path("experiments") / f"text-{given.data}"
    data, version = given.data, None
    if data == "python-topics":
        runs.mkdir(parents=True, exist_ok=True)
        path, version = runs / "topics.txt", sys.version.split()[0]
        path.write_text("\n".join(topics[name] for name in sorted(topics)), encoding="utf-8")
        data = f"text:{path}"
    rows = [search(rule, given.seeds, data, runs) for rule in given.only]
    if given.train:
        return
    splits = load_data({"data": {"name": data, "context": 32}}, seed=0)
    rate = splits.entropy_rate
    result = {
        "benchmark": "text",
        **environment.describe(),
        "data": given.data,
        "of_python": version,
        "options": OPTIONS,
        "vocabulary": splits.num_classes,
        "windows": {"train": len(splits.train), "test": len(splits.test)},
        "entropy_rate": rate,
        "floor": None if rate is None else perplexity(rate),
        "counted": counted(splits),
        "rows": rows,
    }
    out = RESULTS / f"text-{given.data}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
