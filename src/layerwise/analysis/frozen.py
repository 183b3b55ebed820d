"""Outputs of a frozen network's blocks, and small networks (readers) that are trained on them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from layerwise.autocast import without_autocast
from layerwise.blocks import Blocks
from layerwise.blocks.chain import dry_run
from layerwise.data import Batches, Loader, batches_of
from layerwise.errors import InputError
from layerwise.heads.head import Shape
from layerwise.inputs import first_views
from layerwise.rules.base import Rule

# Samples with labels: see `data.Batches`.
Source = Iterable[Any] | Loader | Batches
# (reader, a block's output, the image, the label) -> the reader's loss, ()
Loss = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


def blocks_of(network: Rule | Blocks) -> Blocks:
    """The blocks of a rule, or the blocks themselves."""
    return network.blocks if isinstance(network, Rule) else network


def reading(source: Source, network: nn.Module, call: str) -> Loader | Batches:
    """What reads samples, on the network's device: whatever has epochs as it is, or batches of a
    `DataLoader`, a data set or a list (`data.Batches`).

    Args:
        source: the samples.
        network: a rule or blocks.
        call: the function and its argument, for errors.
    """
    if hasattr(source, "epoch"):
        return source  # type: ignore[return-value]
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    return batches_of(source, device=device, name=call)


def outputs(network: Rule | Blocks, x: Tensor) -> list[Tensor]:
    """Every block's output in float32 or more; a rule runs the blocks as it does at inference."""
    found = network.activities(x) if isinstance(network, Rule) else network.outputs(x)
    return [h.to(torch.promote_types(h.dtype, torch.float32)) for h in found]


@contextlib.contextmanager
def frozen(blocks: Blocks, seed: int = 0) -> Iterator[None]:
    """Put the network into eval mode without gradients, and seed the random generators.

    Modes and generators are restored at the end.
    """
    devices = {p.device.index for p in blocks.parameters() if p.device.type == "cuda"}
    with dry_run(blocks), torch.random.fork_rng(sorted(devices)):
        torch.manual_seed(seed)
        yield


def classes_of(call: str, *loaders: Loader | Batches) -> int:
    """The number of classes: one more than the largest label.

    Args:
        call: the function that asks, for errors.
        loaders: give the labels.

    Raises:
        InputError: there is not one label per sample.
    """
    with torch.random.fork_rng(devices=[]):
        labels = [y for loader in loaders for y in loader.labels(0)]
    if labels[0].dim() != 1:
        raise InputError(
            f"{call}(train): got labels {tuple(labels[0].shape)}; give one label per sample, (B,)"
        )
    return 1 + max(int(y.max()) for y in labels)


def train_readers(
    network: Rule | Blocks,
    train: Loader | Batches,
    make: Callable[[Shape], nn.Module],
    loss: Loss,
    *,
    epochs: int,
    lr: float,
    call: str,
) -> nn.ModuleList:
    """Train one reader per block on the block's output; all readers share each pass.

    Call it within `frozen`.

    Args:
        network: on the device of the loader.
        train: the training data; if a batch has several views, the first is used.
        make: makes a reader from the shape of a block's output.
        loss: the loss of a reader.
        epochs: passes over `train`.
        lr: initial learning rate of Adam; it falls linearly to zero.
        call: the function that asks, for errors.

    Returns:
        The readers, in eval mode.

    Raises:
        InputError: `epochs` is below 1.
    """
    if epochs < 1:
        raise InputError(f"{call}(epochs={epochs}): give 1 or more")
    steps = epochs * len(train)
    x, y = next(train.epoch(0))
    readers = nn.ModuleList(make(tuple(h.shape[1:])) for h in outputs(network, first_views(x, y)))
    readers.to(x.device)
    optimizer = torch.optim.Adam(readers.parameters(), lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for epoch in range(epochs):
        for x, y in train.epoch(epoch):
            x = first_views(x, y)
            given = outputs(network, x)
            optimizer.zero_grad()
            # Autocast keeps the weights that it cast, so the readers would keep their first ones.
            with torch.enable_grad(), without_autocast(y.device):
                # The readers share no parameters: one backward pass of the sum gives all gradients.
                losses = [loss(reader, h, x, y) for reader, h in zip(readers, given, strict=True)]
                torch.stack(losses).sum().backward()
            optimizer.step()
            schedule.step()
    return readers.eval()
