"""What blocks give while nothing of them moves, and small networks that learn to read it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from layerwise.blocks import Blocks
from layerwise.blocks.chain import dry_run
from layerwise.data import Loader
from layerwise.errors import InputError
from layerwise.heads.head import Shape
from layerwise.rules.base import Rule

# (reader, a block's output, the image, the label) -> the reader's loss, ()
Loss = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


def chain(network: Rule | Blocks) -> Blocks:
    """The blocks of either."""
    return network.blocks if isinstance(network, Rule) else network


def outputs(network: Rule | Blocks, x: Tensor) -> list[Tensor]:
    """Every block's output, under a rule as it runs them at inference, in float32 or more."""
    found = network.activities(x) if isinstance(network, Rule) else network.outputs(x)
    return [h.to(torch.promote_types(h.dtype, torch.float32)) for h in found]


def plain(x: Tensor) -> torch.autocast:
    """Without autocast, which would keep using the readers' first weights while it lasts."""
    return torch.autocast(x.device.type, enabled=False)


@contextlib.contextmanager
def reading(blocks: Blocks, seed: int = 0) -> Iterator[None]:
    """Within, the network is in eval mode and without gradients, and random numbers are those of
    `seed`; both are put back after."""
    devices = {p.device.index for p in blocks.parameters() if p.device.type == "cuda"}
    with dry_run(blocks), torch.random.fork_rng(sorted(devices)):
        torch.manual_seed(seed)
        yield


def classes_of(call: str, *loaders: Loader) -> int:
    """How many classes the labels have.

    Raises:
        InputError: labels that are not one for each sample.
    """
    labels = [y for loader in loaders for y in loader.labels(0)]
    if labels[0].dim() != 1:
        raise InputError(
            f"{call}(train): got labels {tuple(labels[0].shape)}; give one for each sample, (B,)"
        )
    return 1 + max(int(y.max()) for y in labels)


def fit(
    network: Rule | Blocks,
    train: Loader,
    make: Callable[[Shape], nn.Module],
    loss: Loss,
    *,
    epochs: int,
    lr: float,
    call: str,
) -> nn.ModuleList:
    """Train a reader on every block's output, all in one pass a time, within `reading`.

    Args:
        network: on the device of the loader.
        train: what readers learn from; of several views of a batch they see the first.
        make: of the shape of a block's output, the reader.
        loss: what a reader minimises.
        epochs: passes over `train`.
        lr: of Adam, at the start; it goes linearly to nought.
        call: whose error it is.

    Returns:
        The readers, in eval mode.

    Raises:
        InputError: fewer than one epoch.
    """
    if epochs < 1:
        raise InputError(f"{call}(epochs={epochs}): give 1 or more")
    steps = epochs * len(train)
    x, y = next(train.epoch(0))
    readers = nn.ModuleList(make(tuple(h.shape[1:])) for h in outputs(network, x[: len(y)]))
    readers.to(x.device)
    optimizer = torch.optim.Adam(readers.parameters(), lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for epoch in range(epochs):
        for x, y in train.epoch(epoch):
            x = x[: len(y)]
            given = outputs(network, x)
            optimizer.zero_grad()
            with torch.enable_grad(), plain(x):
                # Each reader's gradient is its own: the sum only saves passes.
                losses = [loss(reader, h, x, y) for reader, h in zip(readers, given, strict=True)]
                torch.stack(losses).sum().backward()
            optimizer.step()
            schedule.step()
    return readers.eval()
