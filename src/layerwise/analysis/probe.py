"""Linear probes: the accuracy of a linear classifier on each block's output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layerwise.analysis.frozen import (
    Source,
    blocks_of,
    classes_of,
    frozen,
    outputs,
    reading,
    train_readers,
)
from layerwise.autocast import without_autocast
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.heads.head import Shape, feature_vector
from layerwise.inputs import first_views
from layerwise.objectives import cross_entropy
from layerwise.rules.base import Rule


def linear_probe(
    network: Rule | Blocks,
    train: Source,
    test: Source,
    *,
    pool: int | None = 2,
    epochs: int = 10,
    lr: float = 0.01,
    seed: int = 0,
) -> tuple[float, ...]:
    """Train a linear classifier on the frozen output of every block; all share each pass.

    Alain & Bengio 2017 (arXiv:1610.01644). A probe is pooling, normalisation of each feature
    (BatchNorm without parameters, so that a block's scale does not matter) and a linear layer. It
    is trained with Adam, whose learning rate falls linearly to zero. The network runs in eval mode
    without gradients, and is left unchanged.

    Args:
        network: on the device of the loaders.
        train: the probes' training data; if a batch has several views, the first is used.
        test: the data on which the probes are measured.
        pool: average feature maps down to pool x pool (tokens down to `pool`); None keeps every
            position.
        epochs: passes over `train`.
        lr: initial learning rate of Adam.
        seed: of the probes' weights; the global generator is restored.

    Returns:
        The share of correct predictions on `test` for each block, 0 to 1.

    Raises:
        InputError: `epochs` is below 1; there is not one label per sample; `train` has a batch of
            one sample.
    """
    blocks = blocks_of(network)
    train = reading(train, network, "linear_probe(train)")
    test = reading(test, network, "linear_probe(test)")
    classes = classes_of("linear_probe", train, test)
    with torch.random.fork_rng(devices=[]):
        smallest = min(map(len, train.labels(0)))
    if smallest < 2:
        raise InputError(
            "linear_probe(train): got a batch of one sample, whose features cannot be normalised; "
            "give batches of 2 or more: Loader(..., drop_last=True) leaves out a smaller last batch"
        )

    def loss(probe: nn.Module, h: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(probe(h), y)

    with frozen(blocks, seed):
        probes = train_readers(
            network,
            train,
            lambda shape: _probe(shape, classes, pool),
            loss,
            epochs=epochs,
            lr=lr,
            call="linear_probe",
        )
        right, count = torch.zeros(len(blocks), dtype=torch.long, device=train.device), 0
        for x, y in test.epoch(0):
            given = outputs(network, first_views(x, y))
            with without_autocast(y.device):
                scores = [probe(h) for probe, h in zip(probes, given, strict=True)]
            right += torch.stack([(s.argmax(1) == y).sum() for s in scores])
            count += len(y)
    return tuple((right.double() / count).tolist())


def _probe(shape: Shape, classes: int, pool: int | None) -> nn.Sequential:
    layers, features = feature_vector(shape, (classes,), pool, "linear_probe")
    return nn.Sequential(
        *layers, nn.BatchNorm1d(features, affine=False), nn.Linear(features, classes)
    )
