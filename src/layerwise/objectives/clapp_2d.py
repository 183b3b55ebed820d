"""Tell two views of an image from views of others, by a hinge loss that knows positions."""

from __future__ import annotations

from torch import Tensor, nn

from layerwise.arguments import at_least, checks_arguments
from layerwise.heads.head import feature_vector
from layerwise.objectives.activity import Activity
from layerwise.objectives.batch import Batch
from layerwise.objectives.clapp import hinge
from layerwise.objectives.objective import Objective, Site


class CLAPP2D(Objective):
    """Tell another augmented view of an image from views of other images by a hinge loss that knows
    positions; no labels are read.

    CLAPP++ (Wu et al. 2026, arXiv:2601.21683), their type-2 loss with f(s) = max(0, 1 - s).
    With z and c the outputs for two views of an image, averaged down to pool x pool positions and
    flattened (2D spatial dependence), n that of the first view of another image of the batch, and
    sg[] a stopped gradient:

        L = max(0, 1 - z . B sg[c]) + max(0, 1 + n . B sg[c])

    The mean is over images, each of which is c for another one's n (the batch is shifted by one).

    Deviations: c is the block's own activity; direct feedback from the last layer (CLAPP++DFB) is
    not there, because a local rule does not wait for later blocks. n is the neighbour in the
    shuffled batch, not drawn anew.

    Args:
        pool: number of rows and of columns of positions; None keeps every position.

    Raises:
        InputError: `pool` below one; in a step, fewer than two augmented views.
    """

    @checks_arguments
    def __init__(self, pool: int | None = 2):
        super().__init__()
        at_least(1, "CLAPP2D", pool=pool)
        self.pool = pool
        self.flat = nn.Sequential()
        self.B: nn.Module = nn.Identity()

    def build(self, site: Site) -> None:
        layers, features = feature_vector(site.shape, (1,), self.pool, "CLAPP2D")
        self.flat = nn.Sequential(*layers)
        self.B = nn.Linear(features, features, bias=False)

    @property
    def needs_views(self) -> int:
        return 2

    @property
    def reads_input(self) -> bool:
        return False

    def forward(self, activity: Activity, batch: Batch) -> Tensor:
        assert activity.augmented is not None
        z, c = self.flat(activity.augmented[:2].flatten(0, 1)).chunk(2)
        return hinge(z, z.roll(1, 0), self.B(c.detach()))

    def extra_repr(self) -> str:
        return f"pool={self.pool}"
