"""Ways to close the gap of isolated blocks on a residual network: `results/residual-gap.json`.

    python benchmarks/residual_gap.py --data NAME                          all ways, seeds 0 and 1
    python benchmarks/residual_gap.py --data NAME --only backprop pooled   only these
    python benchmarks/residual_gap.py --data NAME --seeds 2                another seed

ResNet-20 of half the width, every residual block a block; 12,000 images for training and 5,000
others for testing, both of the training set; 5 epochs with AdamW and one cycle. Ways are cheap to
add here: what brings nothing keeps its row and does not become a rule. Rows of the file that are
not made again stay in it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import layerwise as lw
from layerwise import models
from layerwise.blocks.parts import Layers
from layerwise.costs.blocks import Costs
from layerwise.data import Augment, Images, Loader
from layerwise.inputs import applied
from layerwise.rules.base import LocalRule, Rule
from layerwise.runs.provenance import provenance

RESULT = Path(__file__).parent / "results" / "residual-gap.json"
IMAGES, TEST_IMAGES, EPOCHS, BATCH, LR = 12_000, 5_000, 5, 128, 0.01
CLASSES = 10
RATE = 1e-3  # of decorrelation
AUGMENT = Augment(normalize="standard", flip=True, crop=4)
EXAMPLE = torch.zeros(2, 3, 32, 32)
NARROW = lw.heads.Conv(layers=2, stride=2, widen=2)


class Way:
    """A network and a way to train it.

    Args:
        rule: made from the blocks.
        network: what is trained; ResNet-20 by default.
        steps: as a ratio to 5 epochs.
    """

    def __init__(
        self,
        rule: Callable[[lw.Blocks], Rule],
        network: Callable[[], nn.Module] = lambda: models.resnet20(width=0.5),
        steps: float = 1.0,
    ):
        self.network, self.steps = network(), steps
        # The pooling before the classifier belongs to the last residual block: its head otherwise
        # learns features by position, of which the classifier reads only the mean.
        at = [*(f"block{k}" for k in range(1, 10)), "classifier.1"]
        self.blocks = lw.cut(self.network, at=at, example=EXAMPLE)
        self.rule = rule(self.blocks)

    def flops(self) -> float:
        """FLOPs of a step, forward and backward, of one sample."""
        return float(Costs.of(self.rule).step_flops or 0)

    def step(self, x: Tensor, y: Tensor, index: Tensor) -> None:
        """Fill `.grad`; `index` tells the images apart."""
        self.rule.backward(x, y)

    def stepped(self) -> None:
        """Called after each step of the optimizer."""


class Averaged(Way):
    """Heads of pooled later layers whose weights are moving averages of the network's, not trained.

    Weights of a head that differ in shape from the network's, and its classifier, are trained.
    """

    def __init__(self, momentum: float, depth: int):
        super().__init__(lambda blocks: lw.rules.AugLocal(blocks, depth=depth, pool=2))
        self.momentum = momentum
        heads = range(len(self.blocks) - 1)
        self.pairs = [pair for k in heads for pair in _pairs(self.rule.objectives[k])]
        if not self.pairs:
            raise RuntimeError("no weight of the heads is the network's")
        with torch.no_grad():
            for ours, mean in self.pairs:
                mean.copy_(ours)
                mean.requires_grad_(False)

    @torch.no_grad()
    def stepped(self) -> None:
        means, ours = [m for _, m in self.pairs], [o.detach() for o, _ in self.pairs]
        torch._foreach_lerp_(means, ours, 1 - self.momentum)


def _pairs(objective: Any) -> list[tuple[Tensor, Tensor]]:
    """The network's weights, and those of the same shape of the head's copies of their layers."""
    found = []
    chosen = [placed.layer for placed in objective.recipe.chosen]
    for own, layer in zip(chosen, [m for m in objective.head if type(m) is Layers], strict=True):
        for module, copied in zip(own, list(layer)[-len(own) :], strict=True):
            copies = dict(copied.named_parameters())
            found += [
                (p, copies[name])
                for name, p in module.named_parameters()
                if p.shape == copies[name].shape
            ]
    return found


class WithImage(nn.Module):
    """A block whose input is the sum of the last block's output and an encoding of the image
    (ContSup, Zhang et al. 2023, arXiv:2312.07636)."""

    def __init__(self, block: nn.Module, channels: int):
        super().__init__()
        self.block = block
        self.encoder = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, h: Tensor, image: Tensor) -> Tensor:
        return self.block(h + self.encoder(F.adaptive_avg_pool2d(image, h.shape[2:])))


class ContextResNet(nn.Module):
    """ResNet-20 of half the width, every residual block of which also reads the image."""

    def __init__(self) -> None:
        super().__init__()
        for name, module in models.resnet20(width=0.5).named_children():
            if name.startswith("block"):
                module = WithImage(module, module.conv1.in_channels)  # type: ignore
            self.add_module(name, module)

    def forward(self, image: Tensor) -> Tensor:
        h = image
        for module in self.children():
            h = module(h, image) if isinstance(module, WithImage) else module(h)
        return h


class SoftTargets(Way):
    """Blocks before the last also learn from what the last one predicted for the same image in the
    epoch before: cross-entropy with (1 - share) label + share prediction."""

    def __init__(self, share: float):
        super().__init__(lambda blocks: lw.rules.AugLocal(blocks, pool=2, criterion=self._loss))
        self.rule.objectives[len(self.blocks) - 1].criterion = self._loss_of_labels  # type: ignore
        self.share = share
        self.labels = torch.zeros(IMAGES, dtype=torch.long)
        self.predicted = torch.zeros(IMAGES, CLASSES)

    def _loss(self, logits: Tensor, index: Tensor) -> Tensor:
        labels = F.one_hot(self.labels[index], CLASSES).float()
        predicted = self.predicted[index]
        known = predicted.sum(1, keepdim=True)  # 0 in the first epoch
        targets = torch.lerp(labels, predicted, self.share * known)
        return F.cross_entropy(logits, targets)

    def _loss_of_labels(self, logits: Tensor, index: Tensor) -> Tensor:
        return F.cross_entropy(logits, self.labels[index])

    def step(self, x: Tensor, y: Tensor, index: Tensor) -> None:
        self.labels[index] = y
        scores = self.rule.backward(x, index).logits
        self.predicted[index] = scores.float().softmax(1)


class Realigned(Way):
    """Every n-th step is one of backpropagation, which is not local."""

    def __init__(self, every: int):
        super().__init__(lambda blocks: lw.rules.AugLocal(blocks, pool=2))
        self.every, self.steps_done = every, 0
        self.backprop = lw.rules.Backprop(self.blocks)

    def flops(self) -> float:
        whole = float(Costs.of(self.backprop).step_flops or 0)
        return super().flops() + (whole - super().flops()) / self.every

    def step(self, x: Tensor, y: Tensor, index: Tensor) -> None:
        self.steps_done += 1
        rule = self.backprop if self.steps_done % self.every == 0 else self.rule
        rule.backward(x, y)


class HalfHeads(Way):
    """Heads read every second sample of a batch; which half, changes from step to step. Blocks run
    on the whole batch."""

    def __init__(self, **options: Any):
        super().__init__(lambda blocks: lw.rules.AugLocal(blocks, criterion=self._loss, **options))
        self.first = 0
        for k in range(len(self.blocks) - 1):
            objective: Any = self.rule.objectives[k]
            objective.head = EverySecond(self, objective.head)

    def _loss(self, logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits, y if len(logits) == len(y) else y[self.first :: 2])

    def stepped(self) -> None:
        self.first = 1 - self.first


class EverySecond(nn.Module):
    """A head that reads every second sample."""

    reads_inputs = True

    def __init__(self, way: HalfHeads, head: nn.Module):
        super().__init__()
        self.way, self.head = way, head

    def forward(self, h: Tensor, inputs: Tensor) -> Tensor:
        return applied(self.head, h[self.way.first :: 2], inputs[self.way.first :: 2])


class Decorrelated(nn.Conv2d):
    """A convolution of decorrelated patches (Dalm et al. 2024, arXiv:2405.02385).

    With x a patch of the input and R the decorrelation, the output is W R x, computed by one
    convolution with the weight W R. After a step, with z = R x of some patches,

        R <- R - rate ((1 - whiten) C + whiten V) R
        C = mean z z^T without its diagonal,    V = the diagonal of mean z z^T, minus 1

    Patches are those of 4 samples of the batch.
    """

    def __init__(self, like: nn.Conv2d, rate: float, whiten: float = 0.1):
        kernel, stride = like.kernel_size, like.stride
        super().__init__(
            like.in_channels,
            like.out_channels,
            kernel,  # type: ignore[arg-type]
            stride,  # type: ignore[arg-type]
            like.padding,  # type: ignore[arg-type]
            bias=False,
        )
        self.weight = like.weight
        self.rate, self.whiten = rate, whiten
        self.register_buffer("mix", torch.eye(like.weight[0].numel()))
        self.patches: Tensor | None = None
        self.learns = True  # otherwise R stays the identity

    def forward(self, input: Tensor) -> Tensor:
        if not self.learns:
            return F.conv2d(input, self.weight, None, self.stride, self.padding)
        if self.training and torch.is_grad_enabled():
            self.patches = input.detach()[:4]
        with torch.autocast("cpu", enabled=False):
            weight = (self.weight.flatten(1) @ self.mix).view_as(self.weight)
        return F.conv2d(input, weight, None, self.stride, self.padding)

    @torch.no_grad()
    def learn(self) -> None:
        """Update R."""
        if self.patches is None:
            return
        x = F.unfold(self.patches.float(), self.kernel_size, 1, self.padding, self.stride)
        z = x.transpose(1, 2).flatten(0, 1) @ self.mix.T
        moments = z.T @ z / len(z)
        change = (1 - self.whiten) * (moments - moments.diag().diag())
        change += self.whiten * (moments.diag() - 1).diag()
        self.mix -= self.rate * change @ self.mix
        self.patches = None


def decorrelated(rate: float) -> nn.Module:
    """ResNet-20 of half the width, all of whose convolutions decorrelate their inputs."""
    network = models.resnet20(width=0.5)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Conv2d:
                setattr(module, name, Decorrelated(child, rate))
    return network


class Decorrelating(Way):
    """A way to train the network of `decorrelated`. The heads' copies of its layers read their
    inputs as they are."""

    def __init__(self, rule: Callable[[lw.Blocks], Rule], rate: float):
        super().__init__(rule, lambda: decorrelated(rate))
        self.make_rule = rule
        self.layers = [m for m in self.network.modules() if isinstance(m, Decorrelated)]
        for module in self.rule.modules():
            if isinstance(module, Decorrelated):
                module.learns = module in self.layers

    def flops(self) -> float:
        """As without decorrelation; and W R, its gradient and the updates of R, which are shared
        out among the samples of a batch."""
        weights = [layer.weight for layer in self.layers]
        once = sum(6.0 * len(w) * w[0].numel() ** 2 for w in weights)
        positions: list[int] = []
        for layer in self.layers:
            layer.register_forward_hook(lambda m, _, out: positions.append(out[0, 0].numel()))
        with torch.no_grad():
            self.network(EXAMPLE)
        for layer, count in zip(self.layers, positions, strict=True):
            width = len(layer.mix)
            once += 4 * count * 2 * 2 * width**2 + 2 * width**3
        return Way(self.make_rule).flops() + once / BATCH

    def stepped(self) -> None:
        for layer in self.layers:
            layer.learn()


def _auglocal(**options: Any) -> Callable[[lw.Blocks], LocalRule]:
    return lambda blocks: lw.rules.AugLocal(blocks, **options)


WAYS: dict[str, Callable[[], Way]] = {
    "backprop": lambda: Way(lw.rules.Backprop),
    "backprop, 1.25 of the steps": lambda: Way(lw.rules.Backprop, steps=1.25),
    "DGL, narrow heads": lambda: Way(lambda blocks: lw.rules.DGL(blocks, head=NARROW)),
    "AugLocal": lambda: Way(_auglocal()),
    "pooled": lambda: Way(_auglocal(pool=2)),
    "pooled, depth 3": lambda: Way(_auglocal(pool=2, depth=3)),
    "pooled by 4, depth 6": lambda: Way(_auglocal(pool=4, depth=6)),
    "averaged copies, depth 3": lambda: Averaged(0.99, 3),
    "displacement 0.01": lambda: Way(_auglocal(pool=2, displacement=0.01)),
    "displacement 0.1": lambda: Way(_auglocal(pool=2, displacement=0.1)),
    "displacement 1": lambda: Way(_auglocal(pool=2, displacement=1.0)),
    "displacement 1, depth 3": lambda: Way(_auglocal(pool=2, displacement=1.0, depth=3)),
    "half of the batch": lambda: HalfHeads(pool=2),
    "half of the batch, not pooled": lambda: HalfHeads(),
    "decorrelated": lambda: Decorrelating(_auglocal(pool=2), RATE),
    "decorrelated, displacement 1": lambda: Decorrelating(
        _auglocal(pool=2, displacement=1.0), RATE
    ),
    "decorrelated, backprop": lambda: Decorrelating(lw.rules.Backprop, RATE),
    "image": lambda: Way(_auglocal(pool=2), ContextResNet),
    "image, backprop": lambda: Way(lw.rules.Backprop, ContextResNet),
    "image, displacement 1": lambda: Way(_auglocal(pool=2, displacement=1.0), ContextResNet),
    "soft targets": lambda: SoftTargets(0.5),
    "realigned every 10": lambda: Realigned(10),
}


def train(name: str, seed: int, train: Images, test: Images) -> dict[str, Any]:
    """The row of a way and a seed."""
    torch.manual_seed(seed)
    way = WAYS[name]()
    way.network.to(memory_format=torch.channels_last)
    learning = [p for p in way.rule.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=LR, weight_decay=0.0)
    steps = round(way.steps * EPOCHS * (IMAGES // BATCH))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps + 1)
    numbered = Images(train.images, torch.arange(len(train)), train.reference)
    loader = Loader(numbered, BATCH, augment=AUGMENT, train=True, seed=seed, channels_last=True)
    start, done, epoch = time.process_time(), 0, 0
    way.rule.train()
    while done < steps:
        for x, index in loader.epoch(epoch):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16):
                way.step(x, train.labels[index], index)
            optimizer.step()
            schedule.step()
            way.stepped()
            done += 1
            if done == steps:
                break
        epoch += 1
    seconds = time.process_time() - start
    return {
        "way": name,
        "seed": seed,
        "test_accuracy": _accuracy(way, test),
        "steps": steps,
        "flops": way.flops(),
        "seconds": round(seconds, 1),
    }


@torch.no_grad()
def _accuracy(way: Way, test: Images) -> float:
    way.rule.eval()
    given = Augment(normalize="standard")
    loader = Loader(test, 500, augment=given, train=False, channels_last=True)
    right = [(way.network(x).argmax(1) == y).sum().item() for x, y in loader.epoch(0)]
    return sum(right) / len(test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--name", help="name of the data in tables")
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    given = parser.parse_args()
    images = lw.data.load(given.data, validation=0).train
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    chosen = images.subset(order[:IMAGES]).normalized_by(images)
    test = images.subset(order[IMAGES : IMAGES + TEST_IMAGES]).normalized_by(images)
    for seed in given.seeds:
        for name in given.only:
            row = train(name, seed, chosen, test)
            print(json.dumps(row), flush=True)
            _keep(row, given.name or given.data)


def _keep(row: dict[str, Any], data: str) -> None:
    """Put a row into the file, in place of the earlier one of its way and seed."""
    kept = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    rows = {(r["way"], r["seed"]): r for r in [*kept, {**row, "environment": provenance()}]}
    order = list(WAYS)
    ordered = sorted(rows.values(), key=lambda r: (order.index(r["way"]), r["seed"]))
    about = {"benchmark": "residual_gap", "data": data}
    about["command"] = "python benchmarks/residual_gap.py --data NAME"
    RESULT.write_text(json.dumps({**about, "rows": ordered}, indent=1) + "\n")


if __name__ == "__main__":
    main()
