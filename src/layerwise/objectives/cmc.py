"""Match the parts of one image, such as its lightness and its colours."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from layerwise.arguments import check, shortened
from layerwise.errors import InputError, choices
from layerwise.heads.head import refuse_class
from layerwise.heads.projector import Projector
from layerwise.objectives.activity import Activity, View
from layerwise.objectives.batch import Batch
from layerwise.objectives.contrast import check_temperature, matched
from layerwise.objectives.objective import Objective, Site

# From red, green and blue to Y, Db and Dr (SECAM). The rows of Db and Dr add up to zero.
YDBDR = ((0.299, 0.587, 0.114), (-0.45, -0.883, 1.333), (-1.333, 1.116, 0.217))
# For each view, one row per channel of the view: the factors of red, green and blue.
PARTS = {
    "luminance": (YDBDR[0],) * 3,
    "chrominance": (YDBDR[1], YDBDR[2], (0.0, 0.0, 0.0)),
    "red": ((1.0, 0.0, 0.0),) * 3,
    "green": ((0.0, 1.0, 0.0),) * 3,
    "blue": ((0.0, 0.0, 1.0),) * 3,
}


@dataclass(frozen=True)
class Part:
    """A view of images (B, 3, H, W) that keeps one part of their colours, in three channels:
    `luminance` three times; `chrominance` as Db, Dr and zero; `red`, `green` or `blue` three times.

    Two objects with the same name are equal, so blocks that ask for the same view share its pass.
    """

    name: str

    def __call__(self, x: Tensor) -> Tensor:
        red, green, blue = x.unbind(1)
        return torch.stack([r * red + g * green + b * blue for r, g, b in PARTS[self.name]], 1)


class CMC(Objective):
    """From one view of an image, such as its lightness, find the other views of the same image
    (contrastive multiview coding); no labels are read.

    Tian et al. 2019 (arXiv:1906.05849), section 3. For two views U and V with projections u and v
    of length 1, tau the temperature and b, c samples of the batch, the loss is, eq. 3 to 6,

        L(U, V) = mean_b -log (exp(u_b v_b / tau) / sum_c exp(u_b v_c / tau))
                + mean_b -log (exp(v_b u_b / tau) / sum_c exp(v_b u_c / tau))

    in nats. With more views it is the sum over all pairs of views (the full graph, eq. 8), or over
    the pairs that contain one chosen view (the core view, eq. 7).

    Deviations: all views pass through the same blocks, in the input's three channels, and only the
    projectors differ between views (the paper has an encoder for each view); negatives come from
    the batch (the paper's come from a memory bank); each block has this task of its own (the paper
    trains one network end to end). Lightness and colours are Y and DbDr (the paper compares these
    with L and ab): they are linear in the image, so they do not depend on how images were
    normalised, if all channels were normalised alike.

    Args:
        projector: recipe of each view's auxiliary network.
        temperature: number by which similarities are divided.
        split: the views, two or more of "luminance", "chrominance", "red", "green", "blue"; in
            Python also functions of a batch of images.
        core: number of the view that is paired with every other view; None pairs all views with
            each other.

    Raises:
        InputError: fewer than two views, the same view twice, an unknown view; a temperature that
            is not above 0; when it is built, a network whose input does not have three channels.
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
        # `split` may also hold functions.
        given = {"projector": projector, "temperature": temperature, "core": core}
        check("CMC", given, {"projector": Projector, "temperature": float, "core": int | None})
        check_temperature("CMC", temperature)
        if not isinstance(split, list | tuple):
            raise InputError(f"CMC(split={shortened(split)}): give two or more views, each once")
        for name in split:
            if isinstance(name, str) and name not in PARTS:
                raise InputError(f"CMC(split={split}): no view {name!r}; {choices(name, PARTS)}")
        if len({*split}) < max(2, len(split)):
            raise InputError(f"CMC(split={split}): give two or more different views")
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
                    f"CMC(split=...): the network takes {site.input_shape} for each sample, which "
                    f"has no {named[0]}; give images (3, H, W), or functions as views"
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
