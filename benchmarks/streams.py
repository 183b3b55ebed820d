"""The residual stream of a transformer under direct feedback: `results/streams.json`.

    python benchmarks/streams.py [--seeds 0 1 2]

Trains the small transformer of `text.py` on English by backpropagation, and by direct feedback
alignment with and without a normalisation on the error's path, each with its own best learning
rate. At several steps the file has, after every block but the last, the mean norm of tokens, the
effective rank of their features (`layerwise.analysis.effective_rank`, at most the width) and the
angle of the block's gradient to backpropagation's in degrees; and the validation perplexity.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import text
import torch

from layerwise import Rule, data
from layerwise.analysis import effective_rank, gradient_alignment
from layerwise.data import Loader
from layerwise.runs.metrics import perplexity
from layerwise.runs.provenance import provenance

RESULTS = Path(__file__).parent / "results"
CONTENDERS = {
    "Backprop": 0.01,
    "DirectFeedbackAlignment": 0.003,
    "DirectFeedbackAlignment, normalize": 0.03,
}
STEPS = (0, 100, 200, 400, 800, 1124)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    budget = text.Budget()
    folder = Path("experiments")
    folder.mkdir(exist_ok=True)
    splits = data.load(text.english(folder), context=budget.context)
    few = Loader(splits.validation.subset(torch.arange(64)), 64, train=False)
    batch = next(few.epoch(0))
    rows: list[dict[str, Any]] = []

    def look(step: int, rule: Rule) -> None:
        if step not in STEPS:
            return
        extents = effective_rank(rule, few)[:-1]
        aligned = gradient_alignment(rule, *batch)[:-1]
        loss, _ = text.evaluate(rule, splits.validation)
        rule.train()
        rows[-1]["steps"].append(
            {
                "step": step,
                "perplexity": perplexity(loss),
                "norm": [e.norm for e in extents],
                "rank": [e.rank for e in extents],
                "angle": [a and a.angle for a in aligned],
            }
        )

    for name, rate in CONTENDERS.items():
        for seed in given.seeds:
            rows.append({"rule": name, "rate": rate, "seed": seed, "steps": []})
            text.train(name, rate, seed, splits, budget, look)
            print(json.dumps(rows[-1]["steps"][-1]), flush=True)
    out = RESULTS / "streams.json"
    content = {"benchmark": "streams", **provenance(), "rows": rows}
    out.write_text(json.dumps(content, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
