"""Tell which parts of an image, such as its lightness and its colours, belong together."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from layerwise.errors import InputError, choices
from layerwise.heads.head import refuse_class
from layerwise.heads.projector import Projector
from layerwise.objectives.activity import Activity, View
from layerwise.objectives.batch import Batch
from layerwise.objectives.contrast import check_temperature, matched
from layerwise.objectives.objective import Objective, Site

# Red, green and blue to Y, Db and Dr (SECAM). Each row of Db and Dr adds up to nought.
YDBDR = ((0.299, 0.587, 0.114), (-0.45, -0.883, 1.333), (-1.333, 1.116, 0.217))
# Each view, a row for each channel that it has, in parts of red, green and blue.
PARTS = {
    "luminance": (YDBDR[0],) * 3,
    "chrominance": (YDBDR[1], YDBDR[2], (0.0, 0.0, 0.0)),
    "red": ((1.0, 0.0, 0.0),) * 3,
    "green": ((0.0, 1.0, 0.0),) * 3,
    "blue": ((0.0, 0.0, 1.0),) * 3,
}


@dataclass(frozen=True)
class Part:
    """A part of the colours of images (B, 3, H, W), in three channels: `luminance` three times;
    `chrominance` as Db, Dr and nought; `red`, `green` or `blue` three times.

    Two of the same part are equal, so blocks that ask for it share it.
    """

    name: str

    def __call__(self, x: Tensor) -> Tensor:
        red, green, blue = x.unbind(1)
        return torch.stack([r * red + g * green + b * blue for r, g, b in PARTS[self.name]], 1)


class CMC(Objective):
    """Contrastive multiview coding: a view of an image finds the other views of the same image.

    Tian et al. 2019 (arXiv:1906.05849), section 3. A view is to find its partner among those of
    the batch, by the exponential of the cosine of their projections over the temperature; for two
    views the sum of both directions (eq. 3 to 6); for more the sum over all pairs (the full graph,
    eq. 8), or over those with one view (the core view, eq. 7). Nats. No labels are read.

    Deviations: the blocks are shared by all views, each of which is brought into the input's three
    channels (the paper has an encoder for each view), and only projectors are each view's own;
    negatives are the batch's (the paper's come from a memory bank); each block has this task of its
    own. Lightness and colours are Y and DbDr, which the paper compares with L and ab: linear, they
    need not know how images were normalised, as long as all channels were alike.

    Args:
        projector: the recipe of each view's auxiliary network.
        temperature: by which similarities are divided.
        split: the views, of "luminance", "chrominance", "red", "green", "blue"; in Python also
            functions of a batch of images.
        core: number of the view that is paired with every other; null pairs all with all.

    Raises:
        InputError: fewer than two views, the same one twice, no such view; a temperature that is
            not above 0; when it is built, the network's input has no three channels.
    """

    def __init__(
        self,
        projector: Projector = Projector(),
        temperature: float = 0.1,
        split: tuple[str, ...] = ("luminance", "chrominance"),
        core: int | None = None,
    ):
        super().__init__()
        refuse_class(projector, "CMC(projector=...)")
        check_temperature("CMC", temperature)
        for name in split:
            if isinstance(name, str) and name not in PARTS:
                raise InputError(f"CMC(split={split}): no view {name!r}; {choices(name, PARTS)}")
        if len({*split}) < max(2, len(split)):
            raise InputError(f"CMC(split={split}): give two or more views, each once")
        if core is not None and not 0 <= core < len(split):
            raise InputError(f"CMC(core={core}): give the number of a view, 0 to {len(split) - 1}")
        self._views: tuple[View, ...] = tuple(Part(v) if isinstance(v, str) else v for v in split)
        pairs = itertools.combinations(range(len(split)), 2)
        self.pairs = [pair for pair in pairs if core is None or core in pair]
        self.projectors = nn.ModuleList()
        self.recipe, self.temperature = projector, temperature

    def build(self, site: Site) -> None:
        if len(site.input_shape) != 3 or site.input_shape[0] != 3:
            named = [view.name for view in self._views if isinstance(view, Part)]
            if named:
                raise InputError(
                    f"CMC(split=...): the network takes {site.input_shape} for each sample, of "
                    f"which there is no {named[0]}; give images (3, H, W), or functions as views"
                )
        self.projectors = nn.ModuleList(self.recipe(site.shape) for _ in self._views)

    @property
    def views(self) -> tuple[View, ...]:
        return self._views

    @property
    def reads_input(self) -> bool:
        return False

    def forward(self, activity: Activity, batch: Batch) -> Tensor:
        outputs = [activity.views[view] for view in self._views]
        z = [project(h_v) for project, h_v in zip(self.projectors, outputs, strict=True)]
        t = self.temperature
        losses = [matched(z[i], z[j], t) + matched(z[j], z[i], t) for i, j in self.pairs]
        return torch.stack(losses).sum()

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, pairs={self.pairs}"
