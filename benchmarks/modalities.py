"""Networks that are not of images or text, under five rules: `results/modalities.json`.

    python benchmarks/modalities.py             all three tasks
    python benchmarks/modalities.py graph       only these tasks; rows of others are kept

    view     colours of an image's pixels from their coordinates (a NeRF in small); PSNR
    clicks   a binary answer from categories, which interact in pairs; area under the ROC curve
    graph    the community of a node from its neighbours, whole graph in one batch; accuracy

After Launay et al. 2020 (arXiv:2006.12878). Every rule takes the learning rate that is best on the
validation part with seed 0; the test part is measured with three seeds.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise import Blocks, Rule, heads, rules
from layerwise.objectives import cross_entropy
from layerwise.runs.provenance import provenance

OUT = Path(__file__).parent / "results" / "modalities.json"
RATES, SEEDS, WIDTH = (2e-3, 1e-2), (0, 1, 2), 128
RULES: dict[str, Callable[..., Rule]] = {
    "Backprop": rules.Backprop,
    "FeedbackAlignment": rules.FeedbackAlignment,
    "DirectFeedbackAlignment": rules.DirectFeedbackAlignment,
    "DGL": functools.partial(rules.DGL, head=heads.Linear()),
    "LastBlock": rules.LastBlock,
}


@dataclass
class Task:
    """Data, a network and a measure.

    Attributes:
        x, y: all samples and their targets.
        train, validation, test: numbers of samples.
        network: makes the blocks.
        criterion: of the network's output.
        score: of outputs and targets; larger is better.
        steps: of training.
        batch: samples in a step; None for the whole graph, whose nodes are the tokens of a single
            sample, and of which only `train` have labels.
    """

    x: Tensor
    y: Tensor
    train: Tensor
    validation: Tensor
    test: Tensor
    network: Callable[[], list[nn.Module]]
    criterion: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor], float]
    steps: int
    batch: int | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=", ".join(TASKS))
    given = parser.parse_args()
    rows = {r["task"]: r for r in json.loads(OUT.read_text())["rows"]} if OUT.exists() else {}
    for name in given.tasks or TASKS:
        task, scores = TASKS[name](), {}
        for rule in RULES:
            found = {rate: _trained(task, rule, rate, 0) for rate in RATES}
            best = max(found, key=lambda rate: found[rate][0])
            rest = [_trained(task, rule, best, seed)[1] for seed in SEEDS[1:]]
            scores[rule] = {"lr": best, "test": [found[best][1], *rest]}
            print(json.dumps({"task": name, "rule": rule, **scores[rule]}), flush=True)
        rows[name] = {"task": name, "steps": task.steps, "scores": scores}
        about = {"benchmark": "modalities", **provenance()}
        about |= {"command": "python benchmarks/modalities.py", "rows": list(rows.values())}
        OUT.write_text(json.dumps(about, indent=1) + "\n")


def _trained(task: Task, rule_name: str, lr: float, seed: int) -> tuple[float, float]:
    """Scores on the validation and the test part."""
    torch.manual_seed(seed)
    blocks = Blocks(task.network(), example=task.x[None] if task.batch is None else task.x[:2])
    rule = RULES[rule_name](blocks, criterion=task.criterion)
    optimizer = torch.optim.Adam(rule.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.steps)
    known = torch.full_like(task.y, -100)  # ignored by the cross-entropy
    known[task.train] = task.y[task.train]
    for _ in range(task.steps):
        optimizer.zero_grad()
        if task.batch is None:
            rule.backward(task.x[None], known[None])
        else:
            drawn = task.train[torch.randint(len(task.train), (task.batch,))]
            rule.backward(task.x[drawn], task.y[drawn])
        optimizer.step()
        schedule.step()
    blocks.eval()
    with torch.no_grad():
        out = blocks(task.x[None])[0] if task.batch is None else blocks(task.x)
    valid, test = ((out[part], task.y[part]) for part in (task.validation, task.test))
    score = [task.score(*each) if each[0].isfinite().all() else -math.inf for each in (valid, test)]
    return score[0], score[1]


def _divided(count: int, *sizes: int) -> list[Tensor]:
    """Random numbers of samples, divided into parts."""
    return list(torch.randperm(count)[: sum(sizes)].split(sizes))


def _hidden(features: int) -> list[nn.Module]:
    """Three hidden layers, each a block."""
    sizes = [features, WIDTH, WIDTH, WIDTH]
    pairs = itertools.pairwise(sizes)
    return [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairs]


class Fourier(nn.Module):
    """Coordinates (B, 2) as cosines and sines of random frequencies (Tancik et al. 2020)."""

    def __init__(self, frequencies: int = 64, scale: float = 6.0):
        super().__init__()
        self.register_buffer("matrix", scale * torch.randn(2, frequencies))

    def forward(self, x: Tensor) -> Tensor:
        angles = 2 * math.pi * x @ self.matrix
        return torch.cat([angles.cos(), angles.sin()], 1)


def view() -> Task:
    """An image that scikit-learn ships, at 80x120 pixels; a half, a tenth and the rest of them."""
    from sklearn.datasets import load_sample_image

    image = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None] / 255
    image = F.interpolate(image, (80, 120), mode="bilinear", antialias=True)[0]
    rows, columns = torch.meshgrid(torch.arange(80) / 80, torch.arange(120) / 120, indexing="ij")
    x, y = torch.stack([rows, columns], -1).view(-1, 2), image.flatten(1).T.contiguous()
    torch.manual_seed(0)
    parts = _divided(len(x), 4800, 960, 3840)

    def network() -> list[nn.Module]:
        first, *rest = _hidden(128)
        return [nn.Sequential(Fourier(), first), *rest, nn.Linear(WIDTH, 3)]

    def psnr(out: Tensor, target: Tensor) -> float:
        return -10 * F.mse_loss(out.clamp(0, 1), target).log10().item()

    return Task(x, y, *parts, network, F.mse_loss, psnr, 600, 512)


class Interactions(nn.Module):
    """Embeddings of categories, and the sum of their products in pairs: (B, N) -> (B, N D + D).

    The sum of pairs of a factorisation machine, as He & Chua 2017 (arXiv:1708.05027) compute it.
    """

    def __init__(self, fields: int, categories: int, size: int = 8):
        super().__init__()
        self.embedding = nn.Embedding(fields * categories, size)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.register_buffer("start", torch.arange(fields) * categories)

    def forward(self, x: Tensor) -> Tensor:
        e_BND = self.embedding(x + self.start)
        pairs_BD = (e_BND.sum(1).square() - e_BND.square().sum(1)) / 2
        return torch.cat([e_BND.flatten(1), pairs_BD], 1)


def clicks(fields: int = 8, categories: int = 40, size: int = 4) -> Task:
    """A factorisation machine with random weights gives each answer's probability."""
    torch.manual_seed(0)
    count = 60_000
    x = torch.randint(categories, (count, fields))
    own, e = torch.randn(fields, categories), torch.randn(fields, categories, size)
    field = torch.arange(fields)
    e_BND = e[field, x]
    pairs = (e_BND.sum(1).square() - e_BND.square().sum(1)).sum(1) / 2
    logit = 0.3 * own[field, x].sum(1) + 0.2 * pairs
    y = torch.bernoulli(logit.sigmoid()).long()
    parts = _divided(count, 40_000, 5_000, 15_000)

    def network() -> list[nn.Module]:
        first, *rest = _hidden(8 * fields + 8)
        embedded = nn.Sequential(Interactions(fields, categories), first)
        return [embedded, *rest, nn.Linear(WIDTH, 2)]

    def area(out: Tensor, target: Tensor) -> float:
        from sklearn.metrics import roc_auc_score

        return float(roc_auc_score(target.numpy(), (out[:, 1] - out[:, 0]).numpy()))

    return Task(x, y, *parts, network, cross_entropy, area, 600, 256)


class Convolve(nn.Module):
    """A graph convolution, H -> A H W + b (Kipf & Welling 2017, arXiv:1609.02907)."""

    def __init__(self, adjacency: Tensor, features: int, out: int):
        super().__init__()
        self.linear = nn.Linear(features, out)
        self.register_buffer("adjacency", adjacency)

    def forward(self, h: Tensor) -> Tensor:
        return self.linear(self.adjacency @ h)


def graph(nodes: int = 600, communities: int = 5, features: int = 32) -> Task:
    """A stochastic block model: edges within communities are more likely; features are noisy."""
    torch.manual_seed(0)
    y = torch.randint(communities, (nodes,))
    likely = torch.where(y[:, None] == y, 0.05, 0.01)
    upper = torch.bernoulli(likely).triu(1)
    adjacency = upper + upper.T + torch.eye(nodes)
    scale = adjacency.sum(1).rsqrt()
    adjacency = scale[:, None] * adjacency * scale
    x = torch.randn(communities, features)[y] + 3 * torch.randn(nodes, features)
    parts = _divided(nodes, 50, 100, 450)

    def network() -> list[nn.Module]:
        sizes = [features, 32, 32, 32]
        pairs = itertools.pairwise(sizes)
        hidden = [nn.Sequential(Convolve(adjacency, a, b), nn.ReLU()) for a, b in pairs]
        return [*hidden, Convolve(adjacency, 32, communities)]

    def accuracy(out: Tensor, target: Tensor) -> float:
        return (out.argmax(1) == target).float().mean().item()

    return Task(x, y, *parts, network, cross_entropy, accuracy, 100, None)


TASKS: dict[str, Callable[[], Task]] = {"view": view, "clicks": clicks, "graph": graph}

if __name__ == "__main__":
    main()
