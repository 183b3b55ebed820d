"""Networks of nearest patches (Thiry et al. 2021), in small and whole: `results/patches-PART.json`.

    python benchmarks/patches.py --data NAME                all parts
    python benchmarks/patches.py spectrum --data NAME       only this part

    spectrum   directions of patches that hold 95 % of the variance
    ablation   6,000 images, a dictionary of 256: without whitening, other regularisations, ...
    stacked    a second layer, whose dictionary is made of the first one's output
    whole      all images: dictionaries of 512 and of 1024, half an hour of one core

Codes have no parameter, so each image is encoded once, rounded to bytes, and the classifier is
trained on files in `--codes`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import layerwise as lw
from layerwise import models
from layerwise.data import Augment, Images, Loader, Splits
from layerwise.models.patches import NearestPatches, PatchNetwork
from layerwise.runs.provenance import provenance
from layerwise.trainer.optim import SGD, OneCycle

RESULTS = Path(__file__).parent / "results"
NORMAL = Augment(normalize="standard")
FEW, FEW_TEST, EPOCHS = 6_000, 2_000, 12
PAPER_LR = 3e-3
ABLATIONS: dict[str, dict[str, Any]] = {
    "whitened": {},
    "not whitened": {"regularisation": None},
    "regularisation x 100": {"regularisation": 1.6},
    "a tenth is nearest": {"neighbours": 0.1},
    "one hidden layer": {"hidden": True},
}
SMALL = {"pools": (3,), "strides": (2,)}  # of a first layer: 64 patches, 13 x 13 positions
TWO = {"patches": (64, 256), "sizes": (6, 3), "pools": (3, 4), "strides": (2, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--data", required=True)
    parser.add_argument("--called", help="name of the data in tables")
    parser.add_argument("--codes", type=Path, default=Path("experiments/patches"))
    given = parser.parse_args()
    given.codes.mkdir(parents=True, exist_ok=True)
    splits = lw.data.load(given.data, validation=0)
    for part in given.parts or PARTS:
        about = {"benchmark": "patches", **provenance(), "data": given.called or given.data}
        about["command"] = f"python benchmarks/patches.py {part} --data NAME"
        rows: list[dict[str, Any]] = []
        for row in PARTS[part](splits, given.codes):
            rows.append(row)
            print(json.dumps(row), flush=True)
            out = RESULTS / f"patches-{part}.json"
            out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


def _some(images: Images, count: int = 512, seed: int = 0) -> Tensor:
    return next(Loader(images, count, augment=NORMAL, train=True, seed=seed).epoch(0))[0]


def _encoded(encoder: nn.Module, images: Images, path: Path) -> Images:
    """What a fixed encoder makes of images, in bytes of 1/255, in a file."""
    shape = encoder(_some(images, 2)).shape[1:]
    size = (len(images), *shape[1:], shape[0])
    kept = torch.from_file(str(path), True, math.prod(size), dtype=torch.uint8).view(size)
    place = 0
    for x, _ in Loader(images, 64, augment=NORMAL, train=False, channels_last=True).epoch(0):
        codes = encoder(x).mul(255).round_().to(torch.uint8)
        kept[place : place + len(x)] = codes.permute(0, 2, 3, 1)
        place += len(x)
    return Images(kept, images.labels)


def _trained(
    network: nn.Module, train: Images, test: Images, codes: Path, epochs: int, lr: float = 0.02
) -> Any:
    """Test accuracy after every epoch, of a classifier of codes."""
    x = torch.zeros(2, *train.shape)
    rule = lw.rules.Backprop(lw.cut(network, blocks=1, example=x))
    plain = Augment(normalize="none")
    loader = Loader(train, 128, augment=plain, train=True, channels_last=True)
    tested = Loader(test, 500, augment=plain, train=False, channels_last=True)
    run = lw.fit(
        rule,
        loader,
        test=tested,
        optimizer=SGD(lr=lr, momentum=0.9, nesterov=False, weight_decay=0.0),
        schedule=OneCycle(),
        runs=codes,
        epochs=epochs,
        precision="bf16",
        channels_last=True,
        progress=False,
    )
    return [metrics["test_accuracy"] for metrics in run.metrics()]


def _row(
    splits: Splits, codes: Path, name: str, epochs: int, lr: float = 0.02, **options: Any
) -> dict[str, Any]:
    """A network of patches, trained on what it was made of."""
    torch.manual_seed(0)
    network = models.patches(splits.shape, splits.num_classes, **options)
    start = time.process_time()
    network.fit_to(_some(splits.train))
    encoder = network[:-1]
    train = _encoded(encoder, splits.train, codes / "train")
    test = _encoded(encoder, splits.test, codes / "test")
    encoding = time.process_time() - start
    accuracy = _trained(network[-1], train, test, codes, epochs, lr)
    return {
        "name": name,
        "options": options,
        "images": len(train),
        "epochs": epochs,
        "lr": lr,
        "accuracy": accuracy,
        "encoding_s": encoding,
        "training_s": time.process_time() - start - encoding,
    }


def _few(splits: Splits) -> Splits:
    assert isinstance(splits.train, Images)
    assert isinstance(splits.test, Images)
    order = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(0))
    train = splits.train.subset(order[:FEW])
    test = splits.test.subset(torch.arange(FEW_TEST)).normalized_by(splits.train)
    return Splits(train.normalized_by(splits.train), None, test, splits.classes, splits.name)


def spectrum(splits: Splits, codes: Path) -> Any:
    """The number of directions that hold most of the variance of patches and of whitened ones."""
    x = _some(splits.train, 2_000)
    for size in (4, 6, 8):
        patches = nn.functional.unfold(x, size, stride=2).transpose(1, 2).flatten(0, 1)
        values = torch.linalg.eigvalsh(patches.T.double().cov()).flip(0)
        held = values.cumsum(0) / values.sum()
        count = {str(share): int((held < share).sum()) + 1 for share in (0.8, 0.9, 0.95, 0.99)}
        yield {"size": size, "directions": len(values), "held": count}


def ablation(splits: Splits, codes: Path) -> Any:
    few = _few(splits)
    for name, options in ABLATIONS.items():
        yield _row(few, codes, name, EPOCHS, patches=(256,), **options)


def stacked(splits: Splits, codes: Path) -> Any:
    """One layer; two, the second on codes; two, the second on features learned from the labels."""
    few = _few(splits)
    yield _row(few, codes, "one layer of 64 patches", EPOCHS, patches=(64,), kernel_size=6, **SMALL)
    yield _row(few, codes, "a second of 256", EPOCHS, **TWO)
    torch.manual_seed(0)
    first = models.patches(few.shape, few.num_classes, (64,), hidden=True, bottleneck=64, **SMALL)
    x = _some(few.train)
    first.fit_to(x)
    train = _encoded(first[:-1], few.train, codes / "train")
    test = _encoded(first[:-1], few.test, codes / "test")
    learned = _trained(first[-1], train, test, codes, EPOCHS)
    yield {"name": "one layer, then 64 hidden units", "epochs": EPOCHS, "accuracy": learned}
    second = models.patches(few.shape, few.num_classes, **TWO)
    body = first[-1].eval()[:3]  # BatchNorm, 1x1 convolution, ReLU
    layer = NearestPatches(64, 256, 3, pool=4, stride=1)
    stack = PatchNetwork(first[0], body, layer, second[-1]).eval()
    with torch.no_grad():
        stack.fit_to(x)
        train = _encoded(stack[:-1], few.train, codes / "train")
        test = _encoded(stack[:-1], few.test, codes / "test")
    learned = _trained(second[-1].train(), train, test, codes, EPOCHS)
    yield {"name": "a second of 256 on the hidden units", "epochs": EPOCHS, "accuracy": learned}


def whole(splits: Splits, codes: Path) -> Any:
    yield _row(splits, codes, "512", 20, PAPER_LR, patches=(512,))
    yield _row(splits, codes, "1024", 15, PAPER_LR, patches=(1024,))


PARTS: dict[str, Callable[[Splits, Path], Any]] = {
    "spectrum": spectrum,
    "ablation": ablation,
    "stacked": stacked,
    "whole": whole,
}

if __name__ == "__main__":
    main()
