"""How well a linear classifier does on each block's output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layerwise.blocks import Blocks
from layerwise.blocks.chain import dry_run
from layerwise.data import Loader
from layerwise.errors import InputError
from layerwise.heads.head import Shape, feature_vector
from layerwise.objectives import cross_entropy
from layerwise.rule import Rule


def linear_probe(
    network: Rule | Blocks,
    train: Loader,
    test: Loader,
    *,
    pool: int | None = 2,
    epochs: int = 10,
    lr: float = 0.01,
    seed: int = 0,
) -> tuple[float, ...]:
    """Train a linear classifier on the frozen output of every block, all in one pass a time.

    Alain & Bengio 2017 (arXiv:1610.01644). A probe is pooling, normalisation of each feature
    (BatchNorm without parameters, so that a block's scale does not matter) and a linear layer,
    trained with Adam, its learning rate going linearly to nought. The network runs in eval mode and
    without gradients, and is left as it was.

    Args:
        network: on the device of the loaders.
        train: what probes learn from; of several views of a batch they see the first.
        test: what they are measured on.
        pool: average feature maps down to pool x pool (tokens down to `pool`); None keeps every
            position.
        epochs: passes over `train`.
        lr: of Adam, at the start.
        seed: of the probes' weights; the global generator is left where it was.

    Returns:
        The share of right predictions on `test` after each block, 0 to 1.

    Raises:
        InputError: fewer than one epoch; labels that are not one for each sample.
    """
    if epochs < 1:
        raise InputError(f"linear_probe(epochs={epochs}): give 1 or more")
    blocks = network.blocks if isinstance(network, Rule) else network
    classes = 1 + max(int(y.max()) for loader in (train, test) for y in loader.labels(0))
    steps = epochs * len(train)
    with dry_run(blocks), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        x, y = next(train.epoch(0))
        if y.dim() != 1:
            raise InputError(
                f"linear_probe(train): got labels {tuple(y.shape)}; give one for each sample, (B,)"
            )
        probes = nn.ModuleList(
            _probe(tuple(h.shape[1:]), classes, pool) for h in _outputs(blocks, x[: len(y)])
        ).to(x.device)
        optimizer = torch.optim.Adam(probes.parameters(), lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        for epoch in range(epochs):
            for x, y in train.epoch(epoch):
                outputs = _outputs(blocks, x[: len(y)])
                optimizer.zero_grad()
                with torch.enable_grad(), _plain(x):
                    # Each probe's gradient is its own: the sum only saves passes.
                    losses = [
                        cross_entropy(probe(h), y) for probe, h in zip(probes, outputs, strict=True)
                    ]
                    torch.stack(losses).sum().backward()
                optimizer.step()
                schedule.step()
        probes.eval()
        right = torch.zeros(len(blocks), dtype=torch.long, device=x.device)
        count = 0
        for x, y in test.epoch(0):
            outputs = _outputs(blocks, x[: len(y)])
            with _plain(x):
                scores = [probe(h) for probe, h in zip(probes, outputs, strict=True)]
            right += torch.stack([(s.argmax(1) == y).sum() for s in scores])
            count += len(y)
    return tuple((right.double() / count).tolist())


def _plain(x: Tensor) -> torch.autocast:
    """Without autocast, which would keep using the probes' first weights while it lasts."""
    return torch.autocast(x.device.type, enabled=False)


def _outputs(blocks: Blocks, h: Tensor) -> list[Tensor]:
    """Every block's output, in float32 or more."""
    outputs = []
    for block in blocks:
        h = block(h)
        outputs.append(h.to(torch.promote_types(h.dtype, torch.float32)))
    return outputs


def _probe(shape: Shape, classes: int, pool: int | None) -> nn.Sequential:
    layers, features = feature_vector(shape, (classes,), pool, "linear_probe")
    return nn.Sequential(
        *layers, nn.BatchNorm1d(features, affine=False), nn.Linear(features, classes)
    )
