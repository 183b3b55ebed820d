"""The longest sequence that an LSTM learns to copy with T steps of backpropagation through time.

    python benchmarks/sequences.py                     everything: 20 minutes of one core
    python benchmarks/sequences.py --windows 4 --seeds 0    train only this part, write no file

The protocol is that of Jaderberg et al. 2017 (arXiv:1608.05343), section 3.2: the network reads N
symbols and writes them down again, and N grows by one when the mean error is below 0.15 bits per
symbol. In the task repeat-copy it writes them as often as it is told, up to R times, and N and R
grow in turn. Every row tries the same learning rates, and sees the same number of time steps; a
time step reads one token of every sequence of a batch. A row is truncated backpropagation through
time with windows of T steps, the same with synthetic gradients, or backpropagation through whole
sequences, which is what perfect synthetic gradients would give. All sequences are drawn anew.

The second part trains on sequences of a fixed length and measures how well the synthesizer predicts
the true gradient, while its prediction is used in full, in part, or hardly at all.

Finished trainings lie in `experiments/sequences` and are not repeated. Everything goes into
`results/sequences.json`; with `--finished`, nothing is trained, and the file has what is finished.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise import cut, models, rules
from layerwise.data.sources.copying import SYMBOLS, copies
from layerwise.heads import Synthesizer
from layerwise.labels import IGNORED
from layerwise.runs.provenance import provenance

RESULTS = Path(__file__).parent / "results"
RUNS = Path("experiments") / "sequences"


@dataclasses.dataclass(frozen=True)
class Budget:
    """What all rows share.

    `rates` are the learning rates of the network under Adam that every row tries, and the
    synthesizer's is `faster` times as high. `synthetic` is the factor of the synthetic gradient. N
    grows if the mean error of `batches` batches is below `bits`.
    """

    width: int = 48
    batch_size: int = 64
    time_steps: int = 20_000
    rates: tuple[float, ...] = (1e-3, 3e-3)
    faster: float = 3.0
    layers: int = 2
    synthetic: float = 0.1
    bits: float = 0.15
    batches: int = 20


@dataclasses.dataclass(frozen=True)
class Fixed:
    """The second part: sequences of one length, two windows."""

    length: int = 3
    window: int = 4
    rate: float = 1e-3
    steps: int = 1200
    looks: int = 8
    synthetic: tuple[float, ...] = (1e-6, 0.1, 1.0)


MOST = 8  # the largest R of repeat-copy, which is never reached
END = SYMBOLS + MOST + 1  # of repeat-copy, in every stage
TASKS = {"copy": SYMBOLS + 1, "repeat-copy": END + 1}  # and the sizes of their vocabularies


def stage(task: str, solved: int) -> tuple[int, int | None]:
    """N and R of the next sequences, after so many stages that are solved; R is None for copy."""
    return (solved + 1, None) if task == "copy" else (1 + (solved + 1) // 2, 1 + solved // 2)


def drawn(task: str, many: int, solved: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences of a stage and their labels."""
    length, repeats = stage(task, solved)
    x, y = copies(many, length, repeats=repeats, generator=generator)
    return (x, y) if repeats is None else (x, torch.where(y == SYMBOLS + repeats + 1, END, y))


def made(
    window: int | None,
    synthetic: float,
    seed: int,
    rate: float,
    budget: Budget,
    vocabulary: int = SYMBOLS + 1,
) -> tuple[nn.Module, rules.TruncatedBPTT, torch.optim.Optimizer]:
    """The network, the rule and the optimizer."""
    torch.manual_seed(seed)
    network = models.lstm((8,), vocabulary, width=budget.width)
    rule = rules.TruncatedBPTT(
        cut(network, blocks=1, example=torch.zeros(2, 8, dtype=torch.long)),
        window,
        synthetic=synthetic,
        synthesizer=Synthesizer(budget.layers, batch_norm=False),
    )
    groups: list[dict[str, Any]] = [{"params": list(network.parameters()), "lr": rate}]
    if rule.synthesizer is not None:
        groups.append({"params": list(rule.synthesizer.parameters()), "lr": budget.faster * rate})
    return network, rule, torch.optim.Adam(groups, fused=True)


def longest(
    task: str, window: int | None, synthetic: float, rate: float, seed: int, budget: Budget
) -> dict[str, Any]:
    """The stages that one training solves, the longest one's N and R, and when it solved each."""
    generator = torch.Generator().manual_seed(seed)
    _, rule, optimizer = made(window, synthetic, seed, rate, budget, TASKS[task])
    seen, errors = 0, list[float]()
    solved_at: list[int] = []
    began = time.process_time()
    while seen < budget.time_steps:
        x, y = drawn(task, budget.batch_size, len(solved_at), generator)
        optimizer.zero_grad()
        loss = rule.backward(x, y).loss
        optimizer.step()
        assert loss is not None
        errors.append(loss.item() / math.log(2))
        seen += x.shape[1]
        last = errors[-budget.batches :]
        if len(last) == budget.batches and sum(last) / len(last) < budget.bits:
            solved_at.append(seen)
            errors = []
    last = errors[-budget.batches :]
    length, repeats = stage(task, len(solved_at) - 1) if solved_at else (0, None)
    return {
        "task": task,
        "window": window,
        "synthetic": synthetic,
        "rate": rate,
        "seed": seed,
        "solved": length,
        "repeats": repeats,
        "solved_at": solved_at,
        "bits": sum(last) / max(1, len(last)),
        "cpu_s": time.process_time() - began,
    }


def prediction(
    network: nn.Module, rule: rules.TruncatedBPTT, x: Tensor, y: Tensor, window: int
) -> dict[str, float]:
    """How well the synthesizer predicts the gradient of each sequence's loss at the end of the
    first window: the share of the gradient's mean square that it explains, and the cosine."""
    state = network(x[:, :window], ())[1]
    ends = [part.detach().requires_grad_() for pair in state for part in pair]
    pairs = list(zip(ends[::2], ends[1::2], strict=True))
    scores = network(x[:, window:], pairs)[0]
    each = F.cross_entropy(scores.flatten(0, 1), y[:, window:].flatten(), reduction="sum")
    loss = each * len(x) / (y != IGNORED).sum()  # the sum over sequences of their own losses
    true = torch.cat([g[0] for g in torch.autograd.grad(loss, ends)], 1)
    assert rule.synthesizer is not None
    with torch.no_grad():
        found = rule.synthesizer(torch.cat([end[0] for end in ends], 1), None)
    explained = 1 - (found - true).square().sum() / true.square().sum()
    cosine = F.cosine_similarity(found.flatten(), true.flatten(), dim=0)
    return {"explained": explained.item(), "cosine": cosine.item()}


def predicted(synthetic: float, seed: int, fixed: Fixed, budget: Budget) -> dict[str, Any]:
    """The second part: error and quality of the prediction during one training."""
    network, rule, optimizer = made(fixed.window, synthetic, seed, fixed.rate, budget)
    generator = torch.Generator().manual_seed(seed)
    looks, errors = [], list[float]()
    for step in range(1, fixed.steps + 1):
        x, y = copies(budget.batch_size, fixed.length, generator=generator)
        optimizer.zero_grad()
        loss = rule.backward(x, y).loss
        optimizer.step()
        assert loss is not None
        errors.append(loss.item() / math.log(2))
        if step % (fixed.steps // fixed.looks) == 0:
            held = copies(512, fixed.length, generator=torch.Generator().manual_seed(1_000_000))
            found = prediction(network, rule, *held, fixed.window)
            bits = sum(errors) / len(errors)
            looks.append({"step": step, "bits": bits, **found})
            errors = []
    return {"synthetic": synthetic, "seed": seed, "looks": looks}


def kept(name: str, train: Any) -> dict[str, Any] | None:
    """The result of a training, from its file if it has one; None without a file and `train`."""
    path = RUNS / f"{name}.json"
    if not path.exists() and train is None:
        return None
    if not path.exists():
        found = train()
        path.write_text(json.dumps(found) + "\n")
        print(
            name, {k: v for k, v in found.items() if k in ("solved", "bits", "cpu_s")}, flush=True
        )
    return json.loads(path.read_text())


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--windows", type=int, nargs="*", default=[], help="T; 0 for whole sequences"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--finished", action="store_true", help="train nothing")
    given = parser.parse_args()
    RUNS.mkdir(parents=True, exist_ok=True)
    budget, fixed = Budget(), Fixed()
    kinds = [(t, a) for t in (2, 4, 8) for a in (0.0, budget.synthetic)] + [(0, 0.0)]
    if given.windows:
        kinds = [kind for kind in kinds if kind[0] in given.windows]
    rows = [
        kept(
            f"{task}-{t}-{a:g}-{rate:g}-{s}",
            None
            if given.finished
            else lambda task=task, t=t, a=a, rate=rate, s=s: longest(
                task, t or None, a, rate, s, budget
            ),
        )
        for task in TASKS
        for s in given.seeds
        for t, a in kinds
        for rate in budget.rates
    ]
    if given.windows:
        return
    observed = [
        kept(
            f"fixed-{a:g}-{s}",
            None if given.finished else lambda a=a, s=s: predicted(a, s, fixed, budget),
        )
        for s in given.seeds
        for a in fixed.synthetic
    ]
    result = {
        "benchmark": "sequences",
        **provenance(),
        "budget": dataclasses.asdict(budget),
        "fixed": dataclasses.asdict(fixed),
        "seeds": given.seeds,
        "rows": [row for row in rows if row is not None],
        "observed": [row for row in observed if row is not None],
    }
    out = RESULTS / "sequences.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
