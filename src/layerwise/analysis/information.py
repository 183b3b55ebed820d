"""How much of the image and of the label each block's output still holds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.analysis.frozen import chain, classes_of, fit, outputs, plain, reading
from layerwise.blocks import Blocks
from layerwise.data import Loader
from layerwise.errors import InputError
from layerwise.heads import MLP, Decoder, Head, Transposed
from layerwise.heads.head import Shape
from layerwise.objectives import cross_entropy
from layerwise.rules.base import Rule


@dataclass(frozen=True)
class Information:
    """What is known of a block's output h.

    Attributes:
        reconstruction: how badly the image is given back, R(x|h): binary cross entropy of a pixel's
            channel, nats; I(h, x) is at least H(x) - R(x|h), so a smaller R is more information.
        label: a lower bound of I(h, y), nats, up to estimation: H(y) less the cross entropy of a
            classifier; at most H(y), and below 0 where that does worse than chance.
    """

    reconstruction: float
    label: float


def information(
    network: Rule | Blocks,
    train: Loader,
    test: Loader,
    *,
    decoder: Decoder = Transposed(),  # noqa: B008 (frozen)
    head: Head = MLP(),  # noqa: B008 (frozen)
    epochs: int = 10,
    lr: float = 0.01,
    seed: int = 0,
) -> tuple[Information, ...]:
    """Estimate what every block's frozen output tells of the image, and of the label.

    As Wang et al. 2021 (InfoPro, arXiv:2101.10832) estimate it: a decoder w and a classifier q
    learn from h, and

        I(h, x) >= H(x) - min_w R_w(x|h),    I(h, y) >= H(y) - min_q E[-log q(y|h)]

    H(x) is the same for all blocks and not known: as there, R is what is reported. Both are
    measured on `test`. Readers are trained together, with Adam, its learning rate going linearly to
    nought.

    An estimate is no better than its reader: where R falls from one block to the next, the decoder
    of the first was too weak, as no block can add information.

    Deviations: the paper has the accuracy of q in the place of the second; here it is nats. Its
    decoder is nearer to `heads.Bilinear`, which cannot tell the pixels of a map of one position
    apart.

    Args:
        network: on the device of the loaders.
        train: what readers learn from; of several views of a batch they see the first.
        test: what they are measured on.
        decoder: w, of every block; reads h and gives the image on the scale 0..1 as logits.
        head: q, of every block.
        epochs: passes over `train`.
        lr: of Adam, at the start.
        seed: of the readers' weights; the global generator is left where it was.

    Raises:
        InputError: fewer than one epoch; labels that are not one for each sample; the network's
            input is no image.
    """
    blocks = chain(network)
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
                f"information(decoder): it gives images of {tuple(given.shape[-2:])} pixels for "
                f"{tuple(target.shape[-2:])}; take heads.Bilinear or heads.Transposed"
            )
        return F.binary_cross_entropy_with_logits(given, target), cross_entropy(q(h), y)

    def target(x: Tensor) -> Tensor:
        return train.denormalize(x).clamp(0, 1)

    with reading(blocks, seed):
        readers = fit(
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
            with plain(x):
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
