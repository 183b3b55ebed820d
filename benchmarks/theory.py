"""The claims of papers on the theory of learning, in small: `results/theory-PART.json`.

    python benchmarks/theory.py                    all parts, about 40 minutes of one core
    python benchmarks/theory.py circuits views     only these parts

    parity     biased bits, and bits that reveal the parity, against uniform ones; fixed features
    digits     the parity of a sum of digits, learned and fixed features
    circuits   a tree of networks on trees of gates, level by level and end to end
    variance   the bound on the variance of families of parities
    views      labels that are needed with and without predicting one view from the other
    cantor     points of a fractal, layer by layer and end to end, by how fine their details are
    synthetic  what linear networks converge to with linear synthetic gradients, by the loss
    similarity representations that synthetic gradients and backpropagation learn (CKA)

Every run is a recipe with options that its row names. Finished runs in `--runs` are not trained
again; interrupted ones continue.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from runs import left_to_train
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise import cut, rules
from layerwise.analysis import (
    cka,
    class_variance_bound,
    correlation_ratio,
    effective_rank,
    linear_probe,
)
from layerwise.blocks import Blocks
from layerwise.cli import main as layerwise
from layerwise.data import Augment, Loader
from layerwise.data.sources.boolean import Circuit, every_input, parities
from layerwise.data.stratify import stratify
from layerwise.experiment.build import build
from layerwise.heads import Synthesizer
from layerwise.objectives.inpaint import Holes
from layerwise.runs.provenance import provenance
from layerwise.runs.run import Run
from layerwise.trainer import load_evaluated

RESULTS = Path(__file__).parent / "results"
LINEAR = "--model.layers 0"
FIXED = "--rule LastBlock --blocks null --at [classifier]"
UNIFORM = "parity:bits=64,relevant=5,samples=64000"
DEPENDENCES, LABELS, DRAWS, PROBE_STEPS = (0.0, 0.1, 0.3, 0.9), (20, 50, 100, 1000), 3, 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--runs", type=Path, default=Path("experiments/theory"))
    given = parser.parse_args()
    for part in given.parts or PARTS:
        rows = PARTS[part](given.runs)
        out = RESULTS / f"theory-{part}.json"
        command = f"python benchmarks/theory.py {part}"
        content = {"benchmark": "theory", **provenance(), "command": command, "rows": rows}
        out.write_text(json.dumps(content, indent=1) + "\n")
        print(out, flush=True)


def trained(runs: Path, name: str, recipe: str, options: str, seeds: int) -> dict[str, Any]:
    """A row of runs: test accuracy after every epoch, for each seed."""
    row: dict[str, Any] = {"name": name, "recipe": recipe, "options": options, "accuracy": []}
    for seed in range(seeds):
        run = _run(runs, f"{name}-{seed}", recipe, f"{options} --seed {seed}").metrics()
        row["accuracy"].append([metrics["test_accuracy"] for metrics in run])
        row["steps"] = run[-1]["step"]
    return row


def _run(runs: Path, name: str, recipe: str, options: str) -> Run:
    path = runs / re.sub(r"[^\w.]+", "-", name)
    left = left_to_train(path, ["--recipe", recipe, "--pictures", "0", *shlex.split(options)])
    if left is not None:
        layerwise(["train", *left])
    return Run.open(path)


def parity(runs: Path) -> list[dict[str, Any]]:
    """Learned and fixed features on three distributions of bits."""
    even = "--data.validation 0.0 --data.name parity:bits=128,relevant=5,bias=0.5,samples=320000"
    uniform = f"--data.validation 0.0 --data.name {UNIFORM}"
    return [
        trained(runs, "biased", "parity-biased", "", 3),
        trained(runs, "uniform, 128 bits", "parity-biased", even, 1),
        trained(runs, "mixture", "parity-mixture", "", 2),
        trained(runs, "mixture, linear", "parity-mixture", LINEAR, 1),
        trained(runs, "mixture, fixed", "parity-mixture", f"{FIXED} --model.width 512", 1),
        trained(runs, "uniform, 64 bits", "parity-mixture", uniform, 2),
    ]


def digits(runs: Path) -> list[dict[str, Any]]:
    """Learned and fixed features on digits."""
    return [
        trained(runs, "digits", "digit-parity", "", 2),
        trained(runs, "digits, linear", "digit-parity", LINEAR, 1),
        trained(runs, "digits, fixed", "digit-parity", FIXED, 1),
    ]


CIRCUITS = {  # depth, gates, bias
    "and, or, nand, nor": (4, "and+or+nand+nor", 0.5),
    "and, or, nand, xor": (3, "and+or+nand+xor", 0.7),
    "xor, P(1) = 0.9": (3, "xor", 0.9),
    "xor, P(1) = 0.75": (3, "xor", 0.75),
    "xor, uniform": (3, "xor", 0.5),
}


def circuits(runs: Path) -> list[dict[str, Any]]:
    """Five circuits, each level by level, all levels at once with local losses, and end to end."""
    rows = []
    for name, (depth, gates, bias) in CIRCUITS.items():
        tree, bits = Circuit.drawn(depth, gates, 1), every_input(2**depth)
        ones = bits.sum(1).double()
        weights = bias**ones * (1 - bias) ** (2**depth - ones)
        values = tree(bits)
        y, inner = values[-1][:, 0], torch.cat(values[:-1], 1)
        true = float(weights @ y.double())
        at = ",".join(f"level{level}" for level in range(2, depth + 1))
        options = (
            f"--data.validation 0.0 --at [{at}] --epochs {4 * depth} "
            f"--data.name circuit:depth={depth},gates={gates},bias={bias},seed=1"
        )
        rows.append(
            {
                "name": name,
                "weakest": correlation_ratio(inner, y, weights).min().item(),
                "majority": max(true, 1 - true),
                "runs": [
                    trained(runs, f"{name}, {kind}", "circuit-sequential", f"{options}{rule}", 2)
                    for kind, rule in (
                        ("level by level", ""),
                        ("local losses at once", " --rule DGL --rule.head Linear"),
                        ("end to end", " --rule Backprop"),
                    )
                ],
            }
        )
    return rows


def variance(runs: Path) -> list[dict[str, Any]]:
    """The bound for all parities of n bits, and for those of 3 bits under three distributions."""
    rows = []
    for n in range(4, 11):
        bits, targets = every_input(n), parities(n, 3)
        ones = bits.sum(1).double()
        row = {"bits": n, "all": class_variance_bound(parities(n)), "targets": len(targets)}
        row["uniform"] = class_variance_bound(targets)
        row["biased"] = class_variance_bound(targets, 0.6**ones * 0.4 ** (n - ones))
        row["mixture"] = class_variance_bound(targets, _mixture(bits, targets))
        rows.append({**row, "combinations": math.comb(n, 3)})
    return rows


def _mixture(bits: Tensor, targets: Tensor) -> Tensor:
    """Of every parity's inputs, half are uniform and half have equal relevant bits: (M, X)."""
    n = bits.shape[1]
    reads = (targets[:, 2 ** torch.arange(n - 1, -1, -1)] < 0).long()
    ones, relevant = reads @ bits.T, reads.sum(1, keepdim=True)
    equal = (ones == 0) | (ones == relevant)
    return 0.5 / 2**n + 0.5 * equal / 2.0 ** (n - relevant + 1)


class _Hide(nn.Module):
    """The first view alone."""

    def forward(self, x: Tensor) -> Tensor:
        return Holes()(x).flatten(1)


def views(runs: Path) -> list[dict[str, Any]]:
    """Linear probes with few labels of the first view, and of what was learned without labels."""
    rows = []
    for dependence in DEPENDENCES:
        options = f"--data.validation 0.0 --data.name views:dependence={dependence}"
        run = _run(runs, f"views-{dependence}", "views-inpaint", options)
        made = build(run.config)
        load_evaluated(made.rule, run.checkpoint("last"))
        splits, augment = made.splits, Augment(normalize="standard")
        blocks = Blocks([_Hide(), made.network[0]])  # type: ignore[index]
        test = Loader(splits.test, 500, augment=augment, train=False)
        extent = effective_rank(blocks, test)[1]
        row: dict[str, Any] = {"dependence": dependence, "recipe": "views-inpaint"}
        row |= {"options": options, "classes": splits.num_classes, "knee": extent.knee}
        row |= {"rank": extent.rank, "probes": []}
        for labels in LABELS:
            found = []
            for draw in range(DRAWS):
                _, few = stratify(splits.train.labels, labels / len(splits.train), draw)
                part = splits.train.subset(few).normalized_by(splits.train)
                train = Loader(part, min(labels, 50), augment=augment, train=True, seed=draw)
                epochs = PROBE_STEPS // len(train)
                found.append(linear_probe(blocks, train, test, epochs=epochs, seed=draw))
            raw, learned = zip(*found, strict=True)
            row["probes"].append({"labels": labels, "raw": raw, "learned": learned})
            print(json.dumps({"dependence": dependence, **row["probes"][-1]}), flush=True)
        rows.append(row)
    return rows


FINE = (0, 8)


def cantor(runs: Path) -> list[dict[str, Any]]:
    """Layer by layer, end to end, and a network with one layer of as many units."""
    rows = []
    for fine in FINE:
        options = f"--data.name cantor:dimension=2,fine={fine}"
        kinds = {
            "layer by layer": "--epochs 40",
            "end to end": "--rule Backprop --epochs 20",
            "one layer": "--rule Backprop --epochs 20 --model.layers 1 --model.width 100 "
            "--at [classifier]",
        }
        made = [
            trained(runs, f"cantor {fine}, {kind}", "cantor-sequential", f"{options} {more}", 1)
            | {"name": kind}
            for kind, more in kinds.items()
        ]
        rows.append({"fine": fine, "runs": made})
    return rows


def _squared(scores: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(scores, F.one_hot(y, scores.shape[1]).to(scores))


CRITERIA = {"squared": _squared, "cross-entropy": F.cross_entropy}
SAMPLES, FULL_STEPS = 400, 2_000


def synthetic(runs: Path) -> list[dict[str, Any]]:
    """Three linear layers, full batches: the loss at the end and the norm of its true gradient."""
    rows = []
    for data, features in itertools.product(("two Gaussians", "random labels"), (2, 100)):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(SAMPLES, features, generator=generator, dtype=torch.float64)
        y = torch.randint(2, (SAMPLES,), generator=generator)
        if data == "two Gaussians":
            x[:, 0] += 2.0 * y - 1
        for loss, criterion in CRITERIA.items():
            row: dict[str, Any] = {"data": data, "features": features, "criterion": loss}
            for name in ("Backprop", "DNI"):
                torch.manual_seed(0)
                layers = [nn.Linear(a, b).double() for a, b in ((features, 10), (10, 10), (10, 2))]
                blocks = Blocks(layers, example=x)
                rule = rules.Backprop(blocks, criterion=criterion)
                if name == "DNI":
                    linear = Synthesizer(layers=0)
                    rule = rules.DNI(blocks, linear, context=True, criterion=criterion)
                optimizer = torch.optim.SGD(rule.parameters(), 0.1)
                for _ in range(FULL_STEPS):
                    optimizer.zero_grad()
                    rule.backward(x, y)
                    optimizer.step()
                optimizer.zero_grad()
                end = criterion(blocks(x), y)
                end.backward()
                square = sum(float(p.grad.square().sum()) for p in blocks.parameters())
                row[name] = {"loss": end.item(), "gradient": square**0.5}
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


LAYERS = 6
NETWORK = f"--model mlp --model.layers {LAYERS} --model.width 64 --model.batch_norm true"
LEARNERS = {
    "Backprop": "--rule Backprop --at [fc4]",
    "DNI": "--rule DNI --rule.context true --at [fc4]",
    "DNI, linear": "--rule DNI --rule.context true --rule.synthesizer.layers 0 --at [fc4]",
    "DirectFeedbackAlignment": "--rule DirectFeedbackAlignment --at [fc4]",
}


def similarity(runs: Path) -> list[dict[str, Any]]:
    """CKA of each layer's output with that of backpropagation, from the same and other weights."""
    names = [*(f"fc{k + 1}" for k in range(LAYERS)), "classifier"]

    def network(name: str, options: str, seed: int) -> tuple[Blocks, Loader, float]:
        options = f"{NETWORK} {options} --epochs 20 --optimizer AdamW --optimizer.lr 0.003"
        path = runs / f"similarity-{re.sub('[^A-Za-z]+', '-', name)}-{seed}"
        given = ["--data", "digits", "--pictures", "0", "--seed", str(seed), *shlex.split(options)]
        if (left := left_to_train(path, given)) is not None:
            layerwise(["train", *left])
        run = Run.open(path)
        made = build(run.config)
        load_evaluated(made.rule, run.checkpoint("last"))
        blocks = cut(made.network, at=names[1:], example=torch.zeros(2, *made.splits.shape))
        test = Loader(made.splits.test, 120, augment=Augment(), train=False)
        return blocks, test, run.metrics()[-1]["test_accuracy"]

    reference = [network("Backprop", LEARNERS["Backprop"], seed) for seed in (0, 1, 2)]
    rows = []
    for name, options in LEARNERS.items():
        own = [network(name, options, seed) for seed in (0, 1, 2)]
        found: dict[str, list[list[float]]] = {"same": [], "other": []}
        for a, b in itertools.product(range(3), repeat=2):
            alike = cka(own[a][0], reference[b][0], own[a][1]).diagonal().tolist()
            found["same" if a == b else "other"].append(alike)
        row = {"name": name, "options": options, "layers": names, "cka": found}
        rows.append(row | {"accuracy": [accuracy for _, _, accuracy in own]})
    return rows


PARTS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    "parity": parity,
    "digits": digits,
    "circuits": circuits,
    "variance": variance,
    "views": views,
    "cantor": cantor,
    "synthetic": synthetic,
    "similarity": similarity,
}

if __name__ == "__main__":
    main()
