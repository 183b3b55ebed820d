"""What one block is asked to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from layerwise.batch import Batch, View
from layerwise.errors import InputError


@dataclass(frozen=True)
class Site:
    """Where an objective sits, without batch dimensions: found by a dry run, never typed.

    Attributes:
        index: which block, from 0.
        blocks: how many blocks there are.
        shape: the block's output, such as (C, H, W) or (T, D).
        unpooled_shape: the same before the pooling that ends the block; `shape` where none does.
        input_shape: the network's input.
        output_shape: the network's output: (classes,), or (T, classes) for one label per token.
    """

    index: int
    blocks: int
    shape: tuple[int, ...]
    unpooled_shape: tuple[int, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]


class Objective(nn.Module, ABC):
    """A local objective: the output of a block and the batch in, a scalar to minimise out.

    It owns its auxiliary network, which `build` makes once its site is known. Objectives add and
    scale: `0.01 * Classify(head) + 0.99 * other`. It never differentiates, steps, or knows the
    rule.

    Attributes:
        site: where it stands; None until a rule has it.
    """

    site: Site | None = None

    @abstractmethod
    def forward(self, h: Tensor, batch: Batch) -> Tensor:
        """The loss, (), mean over the batch; h is the block's output (B, ...)."""

    def place(self, site: Site) -> None:
        """Called once, by the rule: where this objective stands.

        Raises:
            InputError: it stands somewhere already, with an auxiliary network made for that.
        """
        if self.site is not None and self.needs_site:
            raise InputError(
                f"{type(self).__name__}: this objective has its auxiliary network already; an "
                "objective belongs to one rule: make a new one, with the same recipe"
            )
        self.site = site
        self.build(site)

    def build(self, site: Site) -> None:
        """Make the auxiliary network for this place."""

    @property
    def needs_site(self) -> bool:
        """Whether it cannot do without `build`; by default where it has one of its own."""
        return type(self).build is not Objective.build

    @property
    def views(self) -> tuple[View, ...]:
        """Further views of the input that are to pass through the blocks up to this one; the
        block's output for each is then in `batch.views`."""
        return ()

    @property
    def reads_unpooled(self) -> bool:
        """Whether it reads `batch.unpooled`."""
        return False

    @property
    def reads_input(self) -> bool:
        """Whether it may read `batch.x`; a process that holds only later blocks goes without the
        images where no objective does."""
        return True

    def predict(self, h: Tensor) -> Tensor | None:
        """Class scores from the block's output, or None where the objective gives none."""
        return None

    def illustrate(self, h: Tensor, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """What it should have given and what it gave, both as images (B, C, H, W) on the scale of
        the network's input; None where it makes no images."""
        return None

    def __add__(self, other: Objective) -> Objective:
        if not isinstance(other, Objective):
            return NotImplemented
        return Sum([*_terms(self), *_terms(other)])

    def __radd__(self, other: object) -> Objective:
        return self if other == 0 else NotImplemented  # `sum` starts from 0

    def __mul__(self, weight: float) -> Objective:
        if isinstance(weight, Objective):
            return NotImplemented
        return Sum([(weight * w, term) for w, term in _terms(self)])

    __rmul__ = __mul__


class Sum(Objective):
    """A weighted sum of objectives; a term of weight zero is not computed.

    Args:
        terms: pairs of weight and objective.
    """

    def __init__(self, terms: Sequence[tuple[float, Objective]]):
        super().__init__()
        self.weights = tuple(float(weight) for weight, _ in terms)
        self.terms = nn.ModuleList(term for _, term in terms)

    def build(self, site: Site) -> None:
        for _, term in _terms(self):
            term.place(site)

    @property
    def needs_site(self) -> bool:
        return any(term.needs_site for _, term in _terms(self))

    @property
    def views(self) -> tuple[View, ...]:
        return tuple(dict.fromkeys(view for _, term in self._computed() for view in term.views))

    @property
    def reads_unpooled(self) -> bool:
        return any(term.reads_unpooled for _, term in self._computed())

    @property
    def reads_input(self) -> bool:
        return any(term.reads_input for _, term in self._computed())

    def forward(self, h: Tensor, batch: Batch) -> Tensor:
        loss = h.new_zeros(())
        for weight, term in self._computed():
            loss = loss + weight * term(h, batch)
        return loss

    def predict(self, h: Tensor) -> Tensor | None:
        predictions = (term.predict(h) for _, term in self._computed())
        return next((p for p in predictions if p is not None), None)

    def illustrate(self, h: Tensor, batch: Batch) -> tuple[Tensor, Tensor] | None:
        pictures = (term.illustrate(h, batch) for _, term in self._computed())
        return next((p for p in pictures if p is not None), None)

    def _computed(self) -> list[tuple[float, Objective]]:
        return [(weight, term) for weight, term in _terms(self) if weight]

    def extra_repr(self) -> str:
        return f"weights={self.weights}"


def _terms(objective: Objective) -> list[tuple[float, Objective]]:
    if isinstance(objective, Sum):
        return list(zip(objective.weights, objective.terms, strict=True))  # type: ignore[arg-type]
    return [(1.0, objective)]
