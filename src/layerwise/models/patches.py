"""Networks of overlapping patches: processed separately, or replaced by their nearest neighbours.

B images, P numbers in a patch, D patches in a dictionary.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.arguments import at_least, checks_arguments
from layerwise.errors import InputError
from layerwise.models.building_blocks import MeanPool2d, Shape, check_sizes

EPSILON = 1e-10  # a smaller share of the largest variance is none


class CutPatches(nn.Module):
    """Arranges overlapping patches side by side: (B, C, H, W) -> (B, C, G size, G' size).

    There are G rows of G' patches.

    Args:
        size: height and width of a patch, pixels.
        stride: distance from one patch to the next, pixels.
    """

    def __init__(self, size: int, stride: int):
        super().__init__()
        self.size, self.stride = size, stride

    def forward(self, x: Tensor) -> Tensor:
        patches = x.unfold(2, self.size, self.stride).unfold(3, self.size, self.stride)
        return patches.transpose(3, 4).flatten(4, 5).flatten(2, 3)

    def extra_repr(self) -> str:
        return f"size={self.size}, stride={self.stride}"


class PatchWise(nn.Module):
    """Applies a layer to each of the patches that lie side by side, as if it were an image.

    No information passes between patches, neither through the layer's padding nor its pooling. The
    outputs lie side by side again, so they are ordinary feature maps (B, C, H, W).

    Args:
        layer: maps images to feature maps.
        rows, columns: numbers of rows and columns of patches.
    """

    def __init__(self, layer: nn.Module, rows: int, columns: int):
        super().__init__()
        self.layer, self.rows, self.columns = layer, rows, columns

    def forward(self, h: Tensor) -> Tensor:
        grid = (self.rows, self.columns)
        tiles = h.unflatten(3, (self.columns, -1)).unflatten(2, (self.rows, -1))
        h = self.layer(tiles.permute(0, 2, 4, 1, 3, 5).flatten(0, 2))
        return h.unflatten(0, (-1, *grid)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    def extra_repr(self) -> str:
        return f"rows={self.rows}, columns={self.columns}"


def grid_of(shape: Shape, size: int, stride: int, asked_by: str) -> tuple[int, int]:
    """The numbers of rows and columns of patches in an image.

    Args:
        shape: of the image, (C, H, W).
        size: height and width of a patch, pixels.
        stride: distance from one patch to the next, pixels.
        asked_by: the network, for errors.

    Raises:
        InputError: a patch is larger than the image; the stride is below 1 or above `size`.
    """
    _, height, width = shape
    if not 1 <= size <= min(height, width) or not 1 <= stride <= size:
        raise InputError(
            f"{asked_by}(patch={size}, stride={stride}): give a patch of at most the image's "
            f"{height}x{width} pixels, and a stride from 1 to the patch's {size}"
        )
    return (height - size) // stride + 1, (width - size) // stride + 1


class NearestPatches(nn.Module):
    """Tells which patches of a dictionary are nearest to each patch of an image, averaged over
    neighbouring positions: (B, C, H, W) -> (B, 2 D, H', W').

    Thiry et al. 2021 (arXiv:2101.07528), section 3. With the whitening W = (lambda I +
    covariance)^(-1/2) of patches p and their mean m, the code of a patch p has an entry of 1 for
    each d among the Q patches of the dictionary with the smallest ||W (p - m) - W (d - m)||, and
    then the same for ||W (p - m) + W (d - m)||; other entries are 0. The first D maps belong to the
    first sign. `fit` makes the dictionary from data; until then it is random. There is no gradient.

    Deviations: `lambda` is a multiple of the mean variance of a patch's elements, so that it does
    not depend on the scale of the input; the authors' code does not subtract m.

    Args:
        channels: C.
        patches: D, the size of the dictionary.
        size: side of a patch, pixels.
        neighbours: Q / D, in (0, 1].
        pool, stride: of the average pooling.
        regularisation: lambda; null for no whitening, W = I.
    """

    weight: Tensor
    shift: Tensor
    half_norm: Tensor

    def __init__(
        self,
        channels: int,
        patches: int,
        size: int,
        neighbours: float = 0.4,
        pool: int = 1,
        stride: int = 1,
        regularisation: float | None = 0.016,
    ):
        super().__init__()
        self.pool, self.stride, self.regularisation = pool, stride, regularisation
        self.nearest = max(1, round(neighbours * patches))
        self.register_buffer("weight", torch.randn(patches, channels, size, size))
        self.register_buffer("shift", torch.zeros(patches))
        self.register_buffer("half_norm", self.weight.flatten(1).square().sum(1) / 2)

    @torch.no_grad()
    def fit(self, x: Tensor, generator: torch.Generator) -> None:
        """Whiten the patches of images (N, C, H, W), and draw the dictionary from them."""
        patches_NP = F.unfold(x, self.weight.shape[2:]).transpose(1, 2).flatten(0, 1)
        chosen = torch.randperm(len(patches_NP), generator=generator)[: len(self.weight)]
        if len(chosen) < len(self.weight):
            raise InputError(
                f"patches(patches={len(self.weight)}): the {len(x)} images that the dictionary is "
                f"made from have {len(patches_NP)} patches; give fewer"
            )
        mean, white_PP = whitening(patches_NP, self.regularisation)
        white_DP = (patches_NP[chosen.to(x.device)] - mean) @ white_PP  # W (d - m)
        weight_DP = white_DP @ white_PP
        self.weight.copy_(weight_DP.view_as(self.weight))
        self.shift.copy_(weight_DP @ mean)
        self.half_norm.copy_(white_DP.square().sum(1) / 2)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        # ||W (p - m) -+ W (d - m)||^2 / 2 without the term that all d have in common
        product_BDHW = F.conv2d(x, self.weight, -self.shift)
        wide = torch.promote_types(product_BDHW.dtype, torch.float32)  # NumPy has no bfloat16
        product_BHWD = product_BDHW.permute(0, 2, 3, 1).to(wide).contiguous()
        codes = [self._nearest(self.half_norm - product_BHWD)]
        codes.append(self._nearest(product_BHWD.add_(self.half_norm)))
        code = torch.cat(codes, -1).permute(0, 3, 1, 2)
        return F.avg_pool2d(code.to(x.dtype), self.pool, self.stride)

    def _nearest(self, distances: Tensor) -> Tensor:
        """Whether a distance is among the smallest of the last axis."""
        if distances.device.type == "cpu":  # NumPy's selection is several times as fast
            parted = np.partition(distances.numpy(), self.nearest - 1, -1)
            last = torch.from_numpy(parted[..., self.nearest - 1 : self.nearest])
        else:
            last = distances.kthvalue(self.nearest, -1, keepdim=True).values
        return distances <= last

    def extra_repr(self) -> str:
        return f"patches={len(self.weight)}, nearest={self.nearest}, pool={self.pool}"


def whitening(patches: Tensor, regularisation: float | None) -> tuple[Tensor, Tensor]:
    """The mean m of patches (N, P), (P,), and their whitening W = (lambda I + covariance)^(-1/2),
    symmetric (P, P), with lambda as in `NearestPatches`; directions without variance stay out."""
    exact = patches.double()
    mean = exact.mean(0)
    if regularisation is None:
        return mean.to(patches.dtype), torch.eye(len(mean)).to(patches)
    centred = exact - mean
    covariance = centred.T @ centred / len(centred)
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=0) + regularisation * values.mean()
    scales = torch.where(values > EPSILON * values[-1], values.rsqrt(), 0.0)
    return mean.to(patches.dtype), (vectors * scales @ vectors.T).to(patches.dtype)


class PatchNetwork(nn.Sequential):
    """Layers, among them `NearestPatches`, whose dictionaries are made one after the other."""

    def fit_to(self, x: Tensor, seed: int = 0) -> None:
        """Make every dictionary from what the layer gets if the network gets x, (N, C, H, W).

        Raises:
            InputError: there are fewer patches than a dictionary has.
        """
        generator = torch.Generator().manual_seed(seed)
        for layer in list(self)[:-1]:
            if isinstance(layer, NearestPatches):
                layer.fit(x, generator)
            x = layer(x)


@checks_arguments
def patches(
    shape: Shape = (3, 32, 32),
    num_classes: int = 10,
    patches: tuple[int, ...] = (512,),
    sizes: tuple[int, ...] = (6,),
    pools: tuple[int, ...] = (5,),
    strides: tuple[int, ...] = (3,),
    neighbours: float = 0.4,
    regularisation: float | None = 0.016,
    bottleneck: int = 128,
    hidden: bool = False,
    kernel_size: int = 6,
) -> PatchNetwork:
    """Nearest patches of a dictionary, average pooling, and a linear classifier of the maps.

    Thiry et al. 2021 (arXiv:2101.07528). Only the classifier learns: BatchNorm without parameters,
    a 1x1 convolution to `bottleneck` maps, a convolution to class scores, and their mean over
    positions. The dictionary is made of 512 training images before the training begins (`fit_to`);
    the authors use all of them. With more than one size, layers are stacked: the dictionary of the
    second is made of the output of the first, and so on, which the paper leaves open.

    Args:
        shape: of an image, (C, H, W).
        num_classes: number of classes.
        patches: the size of each layer's dictionary.
        sizes: side of each layer's patches, pixels.
        pools: window of each layer's average pooling.
        strides: distance from one of its windows to the next.
        neighbours: share of a dictionary that counts as nearest, in (0, 1].
        regularisation: of the whitening, relative to the mean variance of a patch's elements; the
            paper's 0.001 for pixels of 0..1 is 0.016 on CIFAR-10. null: no whitening.
        bottleneck: maps that the classifier reduces the codes to.
        hidden: whether a ReLU follows them: a classifier with one hidden layer.
        kernel_size: of the classifier's second convolution.

    Raises:
        InputError: a number out of range; layers without all four sizes; maps smaller than a patch,
            a pooling or the classifier's kernel.
    """
    check_sizes("patches", shape, num_classes, bottleneck=bottleneck, kernel_size=kernel_size)
    if not 0 < neighbours <= 1 or (regularisation or 0) < 0 or hidden not in (False, True):
        raise InputError(
            f"patches(neighbours={neighbours}, regularisation={regularisation}): give neighbours "
            "above 0, at most 1, and a regularisation of 0 or more, or null"
        )
    layers = [patches, sizes, pools, strides]
    if not patches or len({len(each) for each in layers}) > 1:
        raise InputError(
            f"patches(patches={patches}, sizes={sizes}, pools={pools}, strides={strides}): give "
            "one number for each layer in all four"
        )
    named: list[tuple[str, nn.Module]] = []
    (maps, *sides) = shape
    for number, (count, size, pool, stride) in enumerate(zip(*layers, strict=True), 1):
        at_least(1, "patches", patches=count, sizes=size, pools=pool, strides=stride)
        layer = NearestPatches(maps, count, size, neighbours, pool, stride, regularisation)
        named.append((f"layer{number}", layer))
        maps = 2 * count
        sides = [(side - size + 1 - pool) // stride + 1 for side in sides]
    if min(sides) < kernel_size:
        raise InputError(
            f"patches(shape={tuple(shape)}, kernel_size={kernel_size}): the layers "
            f"leave maps of {' x '.join(map(str, sides))}; give smaller sizes, pools and strides, "
            "or a smaller kernel_size"
        )
    classifier = nn.Sequential(
        nn.BatchNorm2d(maps, affine=False),
        nn.Conv2d(maps, bottleneck, 1),
        *([nn.ReLU(inplace=True)] if hidden else []),
        nn.Conv2d(bottleneck, num_classes, kernel_size),
        MeanPool2d(),
        nn.Flatten(),
    )
    return PatchNetwork(OrderedDict([*named, ("classifier", classifier)]))
