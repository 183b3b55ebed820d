"""Local objectives without labels, measured by linear probes: `results/probe-NAME.json`.

    python benchmarks/selfsupervised.py NAME --data digits --size 16 --epochs 20 --seeds 0 1 2

Trains a small CNN block by block without labels: Greedy InfoMax (InfoNCE on overlapping patches,
each encoded by itself), and on whole images NT-Xent and inpainting, and for colour images also
contrastive multiview coding and colorization. Each is compared with the same network untrained, and
with its blocks fixed as they were initialised (`LastBlock`: BatchNorm's statistics move, only the
classifier learns). The file holds the linear probe's test accuracy after each convolutional block.
Earlier measurements with the same options stay in it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from layerwise import Rule, cut, data, models, rules
from layerwise.analysis import linear_probe
from layerwise.blocks import Blocks
from layerwise.data import Augment, Loader
from layerwise.objectives import CMC, Colorize, InfoNCE, Inpaint, NTXent, Objective
from layerwise.runs.provenance import provenance
from layerwise.trainer import fabric_for

RESULTS = Path(__file__).parent / "results"
AT = ["conv2", "conv3", "classifier"]
# The augmentations of SimCLR for colour images, and weaker ones for grey images. Greedy InfoMax
# gets the plain ones: a change of colours that is drawn once for an image would tell its patches
# from those of other images, and nothing else would have to be learned.
VIEWS = {
    3: Augment(
        resized_crop=True, scale=(0.2, 1.0), flip=True, jitter=(0.4, 0.4, 0.4, 0.1), grey=0.2
    ),
    1: Augment(resized_crop=True, scale=(0.4, 1.0), jitter=(0.4, 0.4, 0.0, 0.0)),
}
PLAIN = {3: Augment(crop=4, flip=True), 1: Augment(crop=2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--called", help="name of the data in tables")
    parser.add_argument("--images", type=int, help="train only on this many training images")
    parser.add_argument("--size", type=int, help="scale images to this many pixels a side")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--probe_epochs", type=int, default=10)
    parser.add_argument(
        "--pool", type=int, default=1, help="probes read this many positions a side"
    )
    parser.add_argument("--only", nargs="+", help="contenders whose name contains one of these")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--patch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument(
        "--negatives", type=int, help="negatives of InfoNCE; by default all patches"
    )
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--precision", default="32")
    given = parser.parse_args()
    splits = data.load(given.data, size=given.size)
    if given.images is not None:
        few = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(0))
        splits = dataclasses.replace(splits, train=splits.train.subset(few[: given.images]))
    shape = splits.shape
    rows = (shape[1] - given.patch) // (given.patch // 2) + 1

    def patches() -> torch.nn.Module:
        return models.basic_cnn(shape, splits.num_classes, given.channels, 3, patch=given.patch)

    def whole() -> torch.nn.Module:
        return models.basic_cnn(shape, splits.num_classes, given.channels, 3)

    def greedy(objective: Objective) -> Callable[[Blocks], Rule]:
        return lambda blocks: rules.Greedy(blocks, objective)

    contenders: dict[str, tuple[Callable, Callable | None]] = {
        "Greedy InfoMax (InfoNCE), patches": (
            patches,
            greedy(InfoNCE(rows, given.steps, given.skip, given.negatives)),
        ),
        "random fixed blocks, patches": (patches, rules.LastBlock),
        "untrained, patches": (patches, None),
        "NT-Xent": (whole, greedy(NTXent())),
        "CMC": (whole, greedy(CMC())),
        "Colorize": (whole, greedy(Colorize(kind="classify", rebalance=True))),
        "Inpaint": (whole, greedy(Inpaint())),
        "random fixed blocks": (whole, rules.LastBlock),
        "untrained": (whole, None),
    }
    if shape[0] == 1:
        del contenders["CMC"], contenders["Colorize"]
    out = RESULTS / f"probe-{given.name}.json"
    options = {
        k: v for k, v in vars(given).items() if k not in ("data", "called", "name", "only", "seeds")
    }
    _runs_before(out, options)
    results = []
    for seed in given.seeds:
        for name, (network, rule) in contenders.items():
            if given.only and not any(part in name for part in given.only):
                continue
            results.append(
                {"contender": name, "seed": seed, **_measure(network, rule, splits, given, seed)}
            )
            print(json.dumps(results[-1]), flush=True)
    now = {(result["contender"], result["seed"]) for result in results}
    kept = [
        {**run, "results": left}
        for run in _runs_before(out, options)  # another process may have written meanwhile
        if (left := [r for r in run["results"] if (r["contender"], r["seed"]) not in now])
    ]
    content = {
        "benchmark": "selfsupervised",
        "data": given.called or splits.name,
        "given": options,
        "augment": {"NT-Xent": repr(VIEWS[shape[0]]), "others": repr(PLAIN[shape[0]])},
        "blocks": ["conv1", "conv2", "conv3"],
        "runs": [*kept, {**provenance(), "results": results}],
    }
    out.write_text(json.dumps(content, indent=1) + "\n")
    print(out)


def _runs_before(out: Path, options: dict[str, object]) -> list[dict[str, object]]:
    """The runs that the file has already, which must have the same options."""
    if not out.exists():
        return []
    before = json.loads(out.read_text())
    if before["given"] != options:
        raise SystemExit(f"{out}: measured with {before['given']}; give another name")
    return before["runs"]


def _measure(
    network: Callable,
    rule: Callable | None,
    splits: data.Splits,
    given: argparse.Namespace,
    seed: int,
) -> dict[str, object]:
    torch.manual_seed(seed)
    blocks = cut(network(), at=AT, example=torch.zeros(2, *splits.shape))
    fabric = fabric_for("cpu", given.precision)
    started = time.perf_counter()
    if rule is not None:
        made = rule(blocks)
        loader = Loader(
            splits.train,
            given.batch_size,
            augment=(VIEWS if made.needs_views else PLAIN)[splits.shape[0]],
            train=True,
            seed=seed,
            channels_last=True,
            views=max(1, made.needs_views),
        )
        made.to(memory_format=torch.channels_last).train()
        steps = given.epochs * len(loader)
        optimizer = torch.optim.AdamW(made.parameters(), given.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, given.lr, steps)
        for _ in range(given.epochs):
            for x, y in loader:
                optimizer.zero_grad()
                with fabric.autocast():
                    report = made.backward(x, y)
                optimizer.step()
                schedule.step()
    seconds = time.perf_counter() - started
    plain = Augment()
    train = Loader(
        splits.train, given.batch_size, augment=plain, train=True, seed=seed, channels_last=True
    )
    test = Loader(splits.test, 500, augment=plain, train=False, channels_last=True)
    with fabric.autocast():
        accuracy = linear_probe(
            blocks, train, test, pool=given.pool, epochs=given.probe_epochs, seed=seed
        )
    losses = [] if rule is None else [None if v is None else v.item() for v in report.local_losses]
    return {"accuracy": accuracy[:-1], "losses": losses[:-1], "train_s": round(seconds, 1)}


if __name__ == "__main__":
    main()
