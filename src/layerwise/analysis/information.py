"""How much information about the image and about the label each block's output holds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.analysis.frozen import (
    blocks_of,
    classes_of,
    frozen,
    outputs,
    train_readers,
)
from layerwise.autocast import without_autocast
from layerwise.blocks import Blocks
from layerwise.data import Loader
from layerwise.errors import InputError
from layerwise.heads import MLP, Decoder, Head, Transposed
from layerwise.heads.head import Shape
from layerwise.objectives import cross_entropy
from layerwise.rules.base import Rule


@dataclass(frozen=True)
class Information:
    """The information in a block's output h.

    Attributes:
        reconstruction: the reconstruction loss R(x|h): binary cross entropy per pixel and channel,
            nats. I(h, x) is at least H(x) - R(x|h), so a smaller R means more information.
        label: a lower bound of I(h, y), nats, up to estimation error: H(y) minus the cross entropy
            of a classifier. At most H(y); below 0 if the classifier is worse than chance.
    """

    reconstruction: float
    label: float


def information(
    network: Rule | Blocks,
    train: Loader,
    test: Loader,
    *,
    decoder: Decoder = Transposed(),  # noqa: B008 (frozen)
    head: Head = MLP(),
    epochs: int = 10,
    lr: float = 0.01,
    seed: int = 0,
) -> tuple[Information, ...]:
    """Estimate the information about image and label in every block's frozen output.

    The estimate is that of Wang et al. 2021 (InfoPro, arXiv:2101.10832): a decoder w and a
    classifier q learn from h, and

        I(h, x) >= H(x) - min_w R_w(x|h),    I(h, y) >= H(y) - min_q E[-log q(y|h)]

    H(x) is unknown and the same for all blocks, so R is reported, as in the paper. Both are
    measured on `test`. All readers are trained together with Adam, whose learning rate falls
    linearly to zero.

    An estimate is only as good as its reader: no block can add information, so if R falls from one
    block to the next, the decoder of the first was too weak.

    Deviations: the paper reports the accuracy of q instead of I(h, y) in nats. Its decoder is
    closer to `heads.Bilinear`, which cannot distinguish the pixels of a map with one position.

    Args:
        network: on the device of the loaders.
        train: the readers' training data; if a batch has several views, the first is used.
        test: the data on which the readers are measured.
        decoder: w, for every block; reads h and gives the image on the scale 0..1 as logits.
        head: q, for every block.
        epochs: passes over `train`.
        lr: initial learning rate of Adam.
        seed: of the readers' weights; the global generator is restored.

    Returns:
        One result per block.

    Raises:
        InputError: `epochs` is below 1; there is not one label per sample; the network's input is
            not an image.
    """
    blocks = blocks_of(network)
    for name, loader in (("train", train), ("test", test)):
        if not hasattr(loader, "denormalize"):
            raise InputError(
                f"information({name}): got {type(loader).__name__}; give a data.Loader, which "
                "knows how images are scaled"
            )
    classes = classes_of("information", train, test)
    image = tuple(train.shape)

    def make(shape: Shape) -> nn.ModuleList:
        return nn.ModuleList([decoder(shape, image), head(shape, (classes,))])

    def losses(readers: nn.Module, h: Tensor, target: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(readers, nn.ModuleList)
        w, q = readers
        given = w(h)
        if given.shape[-2:] != target.shape[-2:]:
            raise InputError(
                f"information(decoder): it gives images of {tuple(given.shape[-2:])} pixels "
                f"instead of {tuple(target.shape[-2:])}; take heads.Bilinear or heads.Transposed"
            )
        return F.binary_cross_entropy_with_logits(given, target), cross_entropy(q(h), y)

    def target(x: Tensor) -> Tensor:
        return train.denormalize(x).clamp(0, 1)

    with frozen(blocks, seed):
        readers = train_readers(
            network,
            train,
            make,
            lambda readers, h, x, y: sum(losses(readers, h, target(x), y)),  # type: ignore[return-value]
            epochs=epochs,
            lr=lr,
            call="information",
        )
        totals = torch.zeros(len(blocks), 2, device=train.device)
        labels = torch.zeros(classes, device=train.device)
        for x, y in test.epoch(0):
            x = x[: len(y)]
            given = outputs(network, x)
            with without_autocast(x.device):
                found = [
                    torch.stack(losses(reader, h, target(x), y))
                    for reader, h in zip(readers, given, strict=True)
                ]
            totals += len(y) * torch.stack(found)
            labels += torch.bincount(y, minlength=classes)
    count = int(labels.sum())
    shares = [n / count for n in labels.tolist() if n]
    entropy = -sum(share * math.log(share) for share in shares)
    return tuple(Information(r / count, entropy - c / count) for r, c in totals.tolist())
