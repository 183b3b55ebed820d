"""Predict the patches below a patch: contrastive predictive coding, block by block."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.arguments import at_least, checks_arguments
from layerwise.autocast import without_autocast
from layerwise.heads.head import feature_maps
from layerwise.objectives.objective import Site
from layerwise.objectives.patch_prediction import PatchPrediction, others


class InfoNCE(PatchPrediction):
    """Distinguish the patch k rows below from other patches, for several k; no labels are read.

    Contrastive predictive coding (van den Oord et al. 2018, arXiv:1807.03748), on every block
    separately as in Greedy InfoMax (Löwe et al. 2019, arXiv:1905.11786, eq. 4 and 5). With z_rc the
    block's output at row r and column c of a grid, c_rc a context, and X the set of the right patch
    and the negatives:

        f_k(z_{r+k,c}, c_rc) = exp(z_{r+k,c} W_k c_rc)
        mean over k, images, r and c of -log (f_k(z_{r+k,c}, c_rc) / sum_{z in X} f_k(z, c_rc))

    in nats. A patch is a position of the feature maps, which are averaged down to the grid. In a
    convolutional network the receptive fields of positions overlap. In the papers each patch is
    encoded separately, as in a network over patches: `models.basic_cnn(patch=16)`.

    With `context` = 0 the context is the patch alone, as in Greedy InfoMax. Otherwise it is the
    output of so many residual layers of masked convolutions, which see the patch's row and the
    rows before it (`RowContext`), as in CPC v2 (Hénaff et al. 2020, arXiv:1905.09272, appendix A).
    With several directions the grid is turned, and each direction has its own weights.

    Deviations: the loss is the mean over k and directions, not the sum; predictions are compared
    with the patches themselves (CPC v2 maps these to 64 numbers first, and scales by 0.1).

    Args:
        grid: number of rows and of columns of patches, to which feature maps are averaged down.
            None takes every position.
        steps: the largest k.
        skip: the number of smallest k that are left out: 1 if neighbouring patches overlap.
        negatives: number of other patches of the batch from which each prediction is distinguished,
            drawn uniformly with repetition; None for all patches of the batch.
        context: number of layers of the context network.
        directions: 1 predicts downwards, 2 also upwards, 4 also to the right and to the left.

    Raises:
        InputError: sizes below one, `skip` not below `steps`, other directions; when it is built,
            a block without feature maps (C, H, W), or a grid that is too small for `steps`.
    """

    @checks_arguments
    def __init__(
        self,
        grid: int | None = 4,
        steps: int = 2,
        skip: int = 0,
        negatives: int | None = None,
        context: int = 0,
        directions: int = 1,
    ):
        super().__init__(grid, steps, skip, directions)
        at_least(1, "InfoNCE", negatives=negatives)
        at_least(0, "InfoNCE", context=context)
        self.negatives, self.context = negatives, context
        self.contexts = nn.ModuleList()

    def build(self, site: Site) -> None:
        super().build(site)
        if self.context:
            channels = feature_maps(site.shape, "InfoNCE")[1][0]
            made = (RowContext(channels, self.context) for _ in range(self.directions))
            self.contexts = nn.ModuleList(made)

    def context_of(self, direction: int, z: Tensor) -> Tensor:
        if not self.context:
            return z
        return self.contexts[direction](z.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def told_apart(self, predicted: Tensor, patches: Tensor, right: Tensor) -> Tensor:
        dtype = torch.promote_types(predicted.dtype, torch.float32)
        predicted, patches = predicted.to(dtype), patches.to(dtype)
        # Autocast would round the logarithm of f_k to 8 bits.
        with without_autocast(predicted.device):
            if self.negatives is None:
                return F.cross_entropy(predicted @ patches.T, right)
            negatives = others(patches, right, self.negatives)
            candidates = torch.cat([patches[right].unsqueeze(1), negatives], 1)
            log_f = (candidates * predicted[:, None]).sum(2)
            return (log_f.logsumexp(1) - log_f[:, 0]).mean()


class RowContext(nn.Module):
    """A context for every position of a grid from its own row and the rows before it: (B, D, R, C)
    -> (B, D, R, C). The `layers` are residual; each sees one row further up, and one column more to
    each side.

    Hénaff et al. 2020 (arXiv:1905.09272), appendix A. Deviation: one convolution of 2x3 instead of
    one of 1x3 and one of 2x1, and D channels within a layer.

    Args:
        channels: D.
        layers: number of layers.
    """

    def __init__(self, channels: int, layers: int):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 1),
                nn.ReLU(),
                nn.ZeroPad2d((1, 1, 1, 0)),  # left, right, above; nothing from below
                nn.Conv2d(channels, channels, (2, 3)),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 1),
            )
            for _ in range(layers)
        )

    def forward(self, z: Tensor) -> Tensor:
        for layer in self.layers:
            z = z + layer(z)
        return F.relu(z)
