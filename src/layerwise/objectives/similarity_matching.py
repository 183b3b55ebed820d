"""Make the features of samples as similar as their labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.arguments import at_least, checks_arguments
from layerwise.errors import InputError
from layerwise.heads.head import feature_maps, fewer_positions
from layerwise.labels import IGNORED, counted, rows_of
from layerwise.objectives.activity import Activity
from layerwise.objectives.batch import Batch
from layerwise.objectives.cosine import cosine
from layerwise.objectives.objective import Objective, Site


class SimilarityMatching(Objective):
    """Make the features of every two samples as similar as their labels.

    Nøkland & Eidnes 2019 (arXiv:1901.06656), eq. 1, for the outputs H of a batch with one-hot
    labels Y:

        || S(NeuralNet(H)) - S(Y) ||_F^2

    S holds the cosines of all pairs of vectors, each centred by the mean of its own components.
    NeuralNet is a trained 3x3 convolution that keeps resolution and channels, or a
    linear layer on vectors and tokens; both have no bias. For feature maps and tokens, S reads each
    channel's standard deviation over the positions; if there are fewer than four channels or only
    one row of positions, it reads all values. Alone the objective is "sim" in the paper, and
    `0.01 * Classify(Linear(features=2048)) + 0.99 * SimilarityMatching()` is "predsim".

    The version without weight transport, "sim-bpf", is
    `SimilarityMatching(convolve=False, features=4096, projection=128)`. There NeuralNet is average
    pooling, so the loss has no weights that would have to be transported, and the labels are
    projected by a fixed random matrix.

    Soft labels are rows of Y as they are. Pairs with a sample whose label does not count are left
    out.

    Reading: the loss is the mean over the B^2 pairs, not their sum, as in the authors' code, with
    which the weight 0.99 was found.

    Deviation: in a block that ends with a pooling and dropout, the features are taken before both,
    as in the authors' code; in a block that ends with dropout alone, they are taken after it, but
    in the authors' code before it.

    Args:
        convolve: whether NeuralNet is a trained convolution or linear layer; otherwise it is only
            the pooling to `features`.
        features: average feature maps before NeuralNet down to at most this number of values, as
            `heads.Linear` does; None keeps them. With `convolve` this is a deviation that saves
            most of the loss's time.
        projection: compare with the labels' random projection to this number of values; None
            compares with the labels themselves.
        before_pooling: read the block's output before the pooling that ends it. False is a
            deviation; if a block pools 2x2, the convolution then has a quarter of the work.

    Raises:
        InputError: sizes below one; when it is built, a network that does not give class scores for
            whole samples.
    """

    codes: Tensor  # (classes, classes) or (classes, projection): the vector of each class

    @checks_arguments
    def __init__(
        self,
        convolve: bool = True,
        features: int | None = None,
        projection: int | None = None,
        before_pooling: bool = True,
    ):
        super().__init__()
        at_least(1, "SimilarityMatching", features=features, projection=projection)
        self.convolve = convolve
        self.features = features
        self.projection = projection
        self.before_pooling = before_pooling
        self.network: nn.Module = nn.Identity()

    def build(self, site: Site) -> None:
        if len(site.output_shape) != 1:
            raise InputError(
                f"SimilarityMatching: the network gives {site.output_shape} for each sample; this "
                "objective needs one label for each whole sample: (classes,)"
            )
        (classes,) = site.output_shape
        codes = torch.eye(classes)
        if self.projection is not None:
            codes = nn.Linear(classes, self.projection, bias=False).weight.detach().T.clone()
        self.register_buffer("codes", codes)

        shape = site.unpooled_shape if self.before_pooling else site.shape
        layers: list[nn.Module] = []
        if len(shape) == 3:
            layers, maps = feature_maps(shape, "SimilarityMatching")
            fewer = maps if self.features is None else fewer_positions(maps, self.features)
            if fewer != maps:
                layers.append(nn.AdaptiveAvgPool2d(fewer[1:]))
            if self.convolve:
                layers.append(nn.Conv2d(fewer[0], fewer[0], 3, padding=1, bias=False))
        elif self.convolve:
            layers.append(nn.Linear(shape[-1], shape[-1], bias=False))
        self.network = nn.Sequential(*layers)

    @property
    def reads_unpooled(self) -> bool:
        return self.before_pooling

    @property
    def reads_input(self) -> bool:
        return False

    def forward(self, activity: Activity, batch: Batch) -> Tensor:
        h = activity.unpooled if self.before_pooling else activity.output
        similarity_BB = cosine(spread(self.network(h)), centred=True)
        target_BB = cosine(rows_of(self.codes, batch.labels), centred=True).to(similarity_BB.dtype)
        if batch.labels.is_floating_point():
            return F.mse_loss(similarity_BB, target_BB)
        known = batch.labels != IGNORED
        known_BB = known[:, None] & known[None, :]
        loss = F.mse_loss(torch.where(known_BB, similarity_BB, target_BB), target_BB)
        return loss * (len(known) / counted(batch.labels).to(loss.dtype)).square()

    def extra_repr(self) -> str:
        return f"features={self.features}, projection={self.projection}"


def spread(h: Tensor) -> Tensor:
    """Each channel's standard deviation over the positions of feature maps (B, C, H, W) or tokens
    (B, T, C): (B, C). Vectors, fewer than four channels and a single row are returned as they
    are."""
    if h.dim() == 3:
        h = h.transpose(1, 2).unsqueeze(-1)  # (B, C, T, 1)
    if h.dim() != 4 or h.shape[1] < 4 or h.shape[2] < 2:
        return h
    h = h.to(torch.promote_types(h.dtype, torch.float32))
    return h.std((2, 3))
