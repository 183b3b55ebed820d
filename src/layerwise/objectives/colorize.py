"""Tell the colours of a grey image."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.arguments import checks_arguments
from layerwise.errors import InputError, choices
from layerwise.heads.decoder import Decoder, Same
from layerwise.heads.head import refuse_class
from layerwise.objectives.activity import Activity
from layerwise.objectives.batch import Batch
from layerwise.objectives.colour import grey, to_lab, to_rgb
from layerwise.objectives.normalization import SYMMETRIC, Normalization
from layerwise.objectives.objective import Objective, Site

BIN = 10  # side of a bin in the plane of a and b
NEIGHBOURS = 5  # bins that share a colour
SIGMA = 5  # standard deviation of the Gaussian by which they share it
UNIFORM = 0.5  # lambda: weight of the uniform distribution, mixed with that of the colours
TEMPERATURE = 0.38  # of the annealed mean, the paper's eq. 5


@dataclass(frozen=True)
class Grey:
    """A view of colour images (B, 3, H, W): grey versions with the same normalisation.

    Two objects with the same normalization are equal, so blocks that ask for the same view share
    its pass.
    """

    normalization: Normalization

    def __call__(self, x: Tensor) -> Tensor:
        return self.normalization(grey(self.normalization.undo(x))).to(x.dtype)


class Colorize(Objective):
    """Predict the colours of an image from its grey version; no labels are read.

    Zhang et al. 2016 (arXiv:1603.08511). The block sees the grey version of the network's input, as
    a view of its own. At the block's resolution, the head predicts a and b of the image in CIE Lab:

        regress    eq. 1: mean over pixels of ||ab / 110 - head||^2 / 2; 110 is about the
                   largest |a| or |b|
        classify   eq. 2: mean over pixels of the cross-entropy, nats, between the head's
                   scores of Q bins of side 10 in the plane of a and b, and the pixel's colour
                   shared among the nearest 5 bins by a Gaussian of sigma 5

    With `rebalance` each pixel has the weight w of its nearest bin (eq. 3 and 4), where p is the
    share of pixels in the bin: w is proportional to 1 / (p / 2 + 1 / (2 Q)), and its mean over the
    pixels is 1.

    Deviations: the shares p come from the pixels of the batch (the paper's come from ImageNet,
    smoothed); the 260 bins are those that are nearest to some colour of sRGB (the authors choose
    313 by another rule); each block sees the grey image in three equal channels (the paper trains
    one network end to end on L alone).

    Args:
        head: recipe of the auxiliary network, a decoder; `Same` keeps the block's resolution.
        kind: "regress" or "classify".
        rebalance: give rare colours more weight; only with "classify".
        normalization: how the images were normalised. On the command line it is taken from the
            data.

    Raises:
        InputError: another kind; rebalance with "regress"; when it is built, a network whose input
            is not a colour image (3, H, W).
    """

    bins: Tensor  # (Q, 2), centres in a and b

    @checks_arguments
    def __init__(
        self,
        head: Decoder = Same(),  # noqa: B008 (frozen)
        kind: Literal["regress", "classify"] = "regress",
        rebalance: bool = False,
        normalization: Normalization = SYMMETRIC,
    ):
        super().__init__()
        refuse_class(head, "Colorize(head=...)")
        if kind not in ("regress", "classify"):
            known = ("regress", "classify")
            raise InputError(f"Colorize(kind={kind!r}): {choices(str(kind), known)}")
        if rebalance and kind == "regress":
            raise InputError(
                "Colorize(rebalance=True): kind='regress' has no bins to weight; give "
                "kind='classify' too"
            )
        self.head: nn.Module = nn.Identity()
        self.recipe = head
        self.kind = kind
        self.rebalance = rebalance
        self.normalization = normalization

    def build(self, site: Site) -> None:
        if len(site.input_shape) != 3 or site.input_shape[0] != 3:
            raise InputError(
                f"Colorize: the network takes {site.input_shape} for each sample, which is not a "
                "colour image (3, H, W); leave this objective out"
            )
        channels = 2
        if self.kind == "classify":
            self.register_buffer("bins", gamut())
            channels = len(self.bins)
        self.head = self.recipe(site.shape, (channels, *site.input_shape[1:]))

    @property
    def views(self) -> tuple[Grey, ...]:
        return (Grey(self.normalization),)

    def forward(self, activity: Activity, batch: Batch) -> Tensor:
        output, lab = self._output(activity, batch)
        ab = lab[:, 1:]
        if self.kind == "regress":
            return F.mse_loss(output, ab / 110)
        ab_N2 = ab.permute(0, 2, 3, 1).flatten(0, 2)
        output_NQ = output.permute(0, 2, 3, 1).flatten(0, 2)
        near_N5, share_N5 = shares(ab_N2, self.bins)
        loss_N = -(output_NQ.log_softmax(1).gather(1, near_N5) * share_N5).sum(1)
        if self.rebalance:
            loss_N = loss_N * rarity(near_N5, share_N5, len(self.bins))
        return loss_N.mean()

    def illustrate(self, activity: Activity, batch: Batch) -> tuple[Tensor, Tensor]:
        """The images, and their lightness with the predicted colours, both (B, 3, H, W)."""
        output, _ = self._output(activity, batch)
        if self.kind == "regress":
            ab = output * 110
        else:
            weight = (output / TEMPERATURE).softmax(1)
            ab = torch.einsum("bqhw,qc->bchw", weight, self.bins.to(weight.dtype))
        target = batch.x.to(ab.dtype)
        ab = F.interpolate(ab, target.shape[-2:], mode="bilinear")
        lightness = to_lab(self.normalization.undo(target))[:, :1]
        return target, self.normalization(to_rgb(torch.cat([lightness, ab], 1)))

    def _output(self, activity: Activity, batch: Batch) -> tuple[Tensor, Tensor]:
        """The head's output, and the image in Lab at the same resolution, in float32 or more."""
        output = self.head(activity.views[self.views[0]])
        dtype = torch.promote_types(output.dtype, torch.float32)
        lab = to_lab(self.normalization.undo(batch.x.to(dtype)))
        if lab.shape[-2:] != output.shape[-2:]:
            lab = F.adaptive_avg_pool2d(lab, output.shape[-2:])
        return output.to(dtype), lab

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, rebalance={self.rebalance}"


@functools.lru_cache(1)
def _found() -> tuple[tuple[float, float], ...]:
    level = torch.linspace(0, 1, 52, dtype=torch.float64)  # every fifth of 256
    rgb = torch.cartesian_prod(level, level, level).T[None, :, :, None]
    ab = to_lab(rgb)[0, 1:, :, 0].T
    return tuple(map(tuple, ((ab / BIN).round() * BIN).unique(dim=0).tolist()))


def gamut() -> Tensor:
    """The centres in a and b, (Q, 2), of the bins that are nearest to some colour of sRGB."""
    return torch.tensor(_found())


def shares(ab_N2: Tensor, bins_Q2: Tensor) -> tuple[Tensor, Tensor]:
    """The five bins that share each colour, the nearest first, and their shares, both (N, 5)."""
    bins_Q2 = bins_Q2.to(ab_N2.dtype)
    square_NQ = torch.cdist(ab_N2, bins_Q2, compute_mode="donot_use_mm_for_euclid_dist").square()
    square_N5, near_N5 = square_NQ.topk(NEIGHBOURS, largest=False)
    return near_N5, (-square_N5 / (2 * SIGMA**2)).softmax(1)


def rarity(near_N5: Tensor, share_N5: Tensor, bins: int) -> Tensor:
    """The weight of each colour, (N,), with mean 1: larger if its nearest bin is rarer."""
    p_Q = share_N5.new_zeros(bins).index_add(0, near_N5.flatten(), share_N5.flatten())
    p_Q = p_Q / len(near_N5)
    w_Q = 1 / ((1 - UNIFORM) * p_Q + UNIFORM / bins)
    w_N = w_Q[near_N5[:, 0]]
    return w_N / w_N.mean()
