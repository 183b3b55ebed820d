"""The contract of a local objective, and weighted sums of objectives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from layerwise.arguments import is_finite, shortened
from layerwise.errors import InputError
from layerwise.heads.head import Head, refuse_class
from layerwise.heads.layout import built
from layerwise.inputs import Inputs, applied
from layerwise.objectives.activity import Activity, View
from layerwise.objectives.batch import Batch

# A factor in a sum: one for all blocks, or a pair that changes linearly over them (`between`).
Weight = float | tuple[float, float]


def between(i: int, blocks: int, first: float, last: float) -> float:
    """The value at block `i` of `blocks` of a number that changes linearly from the first block to
    the last but one: first + (last - first) i / (blocks - 2). With two blocks, the first one gets
    `first`. The last block always gets `last`."""
    if i == blocks - 1:
        return last
    if blocks == 2:
        return first
    return first + (last - first) * i / (blocks - 2)


@dataclass(frozen=True)
class Site:
    """The block for which an objective is built, and the shapes around it. All shapes are without
    the batch dimension; a dry run of the network found them.

    Attributes:
        index: number of the block, from 0.
        blocks: number of blocks.
        shape: shape of the block's output, such as (C, H, W) or (T, D).
        unpooled_shape: its shape before the pooling that ends the block; `shape` if none does.
        input_shape: shape of the network's input.
        output_shape: shape of the network's output: (classes,); (T, classes) for one label per
            token; (classes, H, W) for one label per pixel.
        channels_first: whether a `shape` of two axes is (D, T), as one-dimensional convolutions
            give it.
        output_channels_first: whether an `output_shape` of two axes is (classes, T).
    """

    index: int
    blocks: int
    shape: tuple[int, ...]
    unpooled_shape: tuple[int, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    channels_first: bool = False
    output_channels_first: bool = False


class Objective(nn.Module, ABC):
    """A local objective: `objective(activity, batch)` is the loss that one block minimises.

    A subclass writes `forward`, and `build` if it has an auxiliary network. The properties below
    say what it reads; override those whose default does not fit. An objective that computes class
    scores on the way to its loss extends `Predicting` instead. An objective never differentiates,
    never steps, and does not know the rule.

    Objectives can be added and scaled: `0.01 * Classify(head) + 0.99 * other`. A pair of factors
    changes linearly over the blocks, from the first to the last but one: `(5, 0.5) * Reconstruct()`
    (`between`).

    Attributes:
        site: the place for which it was built; None until a rule has it.
    """

    site: Site | None = None

    @abstractmethod
    def forward(self, activity: Activity, batch: Batch) -> Tensor:
        """The loss, (), mean over the batch.

        Args:
            activity: the block's output, `activity.output`, (B, ...), and its other forms.
            batch: the step's inputs, `batch.x`, and labels, `batch.labels`.
        """

    def loss_and_scores(self, activity: Activity, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The loss, (), and the class scores computed on the way to it, (B, C), detached, or None.
        The arguments are those of `forward`."""
        return self(activity, batch), None

    def place(self, site: Site) -> None:
        """Called once, by the rule: remember the site, and build the auxiliary network for it.

        Raises:
            InputError: the objective was built before, for another rule.
        """
        if self.site is not None and self.needs_site:
            raise InputError(
                f"{type(self).__name__}: this objective already has its auxiliary network; an "
                "objective belongs to one rule: make a new one with the same recipe"
            )
        self.site = site
        self.build(site)

    def build(self, site: Site) -> None:
        """Make the auxiliary network for this site. Does nothing by default.

        Raises:
            InputError: the shapes do not fit the objective.
        """

    def number(self, index: int, blocks: int) -> None:
        """Called by the rule before any other method or property: the objective is that of block
        `index` of `blocks`. Does nothing by default."""

    @property
    def needs_site(self) -> bool:
        """Whether the objective cannot be used before `build`; by default whether it defines
        `build`."""
        return type(self).build is not Objective.build

    @property
    def views(self) -> tuple[View, ...]:
        """Further views of the input that pass through the blocks up to this one, in addition to
        the input itself. The block's output for each is in `activity.views`. Blocks whose
        objectives ask for equal views share their passes. None by default."""
        return ()

    @property
    def needs_views(self) -> int:
        """The smallest number of augmented views of every sample that the objective can compare, in
        `activity.augmented`; 0, the default, if it does not compare any. A batch may have more
        (`data.Loader(views=...)`)."""
        return 0

    @property
    def reads_unpooled(self) -> bool:
        """Whether the objective reads `activity.unpooled`; False by default."""
        return False

    @property
    def reads_block_input(self) -> bool:
        """Whether the objective reads the block's own input, `activity.input`; False by default."""
        return False

    @property
    def reads_input(self) -> bool:
        """Whether the objective reads `batch.x`; True by default. A process that holds only later
        blocks does not get the inputs if no objective reads them."""
        return True

    def predict(self, h: Tensor, inputs: Inputs = None) -> Tensor | None:
        """Class scores from the block's output, (B, C), (B, T, C) or (B, C, H, W); None if the
        objective gives none.

        Args:
            h: the block's output, (B, ...).
            inputs: the network's inputs, from which some heads read a padding mask; without them no
                token counts as padding.
        """
        return None

    def illustrate(self, activity: Activity, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """The target and the prediction, both as images (B, C, H, W) on the scale of the network's
        input; None if the objective predicts no images."""
        return None

    def parts(self) -> list[tuple[float, Objective]]:
        """The weights and objectives whose weighted sum is the loss."""
        return [(1.0, self)]

    def __add__(self, other: Objective) -> Objective:
        if not isinstance(other, Objective):
            return NotImplemented
        return Sum([*_terms(self), *_terms(other)])

    def __radd__(self, other: object) -> Objective:
        return self if other == 0 else NotImplemented  # `sum` starts from 0

    def __mul__(self, weight: Weight) -> Objective:
        if isinstance(weight, Objective):
            return NotImplemented
        return Sum([(_product(weight, w), term) for w, term in _terms(self)])

    __rmul__ = __mul__


class Predicting(Objective):
    """An objective that computes class scores on the way to its loss. The step's report then has
    the scores without a second pass of the head."""

    @abstractmethod
    def forward(
        self, activity: Activity, batch: Batch, scores: list[Tensor] | None = None
    ) -> Tensor:
        """The loss, (), mean over the batch.

        Args:
            activity, batch: as in `Objective.forward`.
            scores: a list to which the class scores, detached, are appended; None if nobody reads
                them.
        """

    def loss_and_scores(self, activity: Activity, batch: Batch) -> tuple[Tensor, Tensor | None]:
        scores: list[Tensor] = []
        loss = self(activity, batch, scores)
        return loss, scores[0] if scores else None


class ThroughHead(Predicting):
    """An objective whose class scores are those of a head, or the block's output without one.

    Args:
        head: recipe of the auxiliary network.
        asked_by: the objective's name, for errors.
    """

    def __init__(self, head: Head | None, asked_by: str):
        super().__init__()
        refuse_class(head, f"{asked_by}(head=...)")
        self.head: nn.Module = nn.Identity()
        self.recipe = head

    def build(self, site: Site) -> None:
        if self.recipe is not None:
            self.head = built(
                self.recipe,
                site.shape,
                site.output_shape,
                site.channels_first,
                site.output_channels_first,
            )

    @property
    def needs_site(self) -> bool:
        return self.recipe is not None

    def predict(self, h: Tensor, inputs: Inputs = None) -> Tensor:
        """Class scores, (B, C), (B, T, C) or, for maps, (B, C, H, W)."""
        return applied(self.head, h, inputs)


class Sum(Predicting):
    """A weighted sum of objectives; a term of weight zero is not computed.

    Args:
        terms: pairs of weight and objective; a weight is a number, or a pair of numbers that
            changes linearly over the blocks (`between`).

    Raises:
        InputError: a weight that is neither; in a step, a pair of numbers if the sum was given to
            no rule, so that its block is not known.
    """

    def __init__(self, terms: Sequence[tuple[Weight, Objective]]):
        super().__init__()
        self.weights = tuple(_checked(weight) for weight, _ in terms)
        self.terms = nn.ModuleList(term for _, term in terms)
        self._here: tuple[float, ...] | None = None

    def number(self, index: int, blocks: int) -> None:
        self._here = tuple(
            between(index, blocks, *weight) if isinstance(weight, tuple) else weight
            for weight in self.weights
        )
        for _, term in _terms(self):
            term.number(index, blocks)

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
    def needs_views(self) -> int:
        return max((term.needs_views for _, term in self._computed()), default=0)

    @property
    def reads_unpooled(self) -> bool:
        return any(term.reads_unpooled for _, term in self._computed())

    @property
    def reads_block_input(self) -> bool:
        return any(term.reads_block_input for _, term in self._computed())

    @property
    def reads_input(self) -> bool:
        return any(term.reads_input for _, term in self._computed())

    def forward(
        self, activity: Activity, batch: Batch, scores: list[Tensor] | None = None
    ) -> Tensor:
        loss = activity.output.new_zeros(())
        for weight, term in self._computed():
            part, found = term.loss_and_scores(activity, batch)
            loss = loss + weight * part
            if scores is not None and found is not None:
                scores.append(found)  # the first term's are the sum's
        return loss

    def predict(self, h: Tensor, inputs: Inputs = None) -> Tensor | None:
        predictions = (term.predict(h, inputs) for _, term in self._computed())
        return next((p for p in predictions if p is not None), None)

    def illustrate(self, activity: Activity, batch: Batch) -> tuple[Tensor, Tensor] | None:
        pictures = (term.illustrate(activity, batch) for _, term in self._computed())
        return next((p for p in pictures if p is not None), None)

    def parts(self) -> list[tuple[float, Objective]]:
        return [(w * v, part) for w, term in self._computed() for v, part in term.parts()]

    def _computed(self) -> list[tuple[float, Objective]]:
        """This block's weights that are not zero, each with its objective."""
        here = []
        for weight, (given, term) in zip(self._here or self.weights, _terms(self), strict=True):
            if isinstance(weight, tuple):
                raise InputError(
                    f"Sum: the weight {given} depends on the block, which is not known; give the "
                    "sum to a rule, or call number(index, blocks)"
                )
            if weight:
                here.append((weight, term))
        return here

    def extra_repr(self) -> str:
        return f"weights={self._here or self.weights}"


def _terms(objective: Objective) -> list[tuple[Weight, Objective]]:
    if isinstance(objective, Sum):
        return list(zip(objective.weights, objective.terms, strict=True))  # type: ignore[arg-type]
    return [(1.0, objective)]


def _checked(weight: Weight) -> Weight:
    """A finite number, or two of them, as floats."""
    if is_finite(weight):
        return float(weight)  # type: ignore[arg-type]
    pair = isinstance(weight, tuple | list) and len(weight) == 2
    if not pair or not all(map(is_finite, weight)):  # type: ignore[arg-type]
        raise InputError(
            f"Sum(weight={shortened(weight)}): give one finite number, or two, for the first and "
            "the last block: (5, 0.5)"
        )
    return float(weight[0]), float(weight[1])  # type: ignore[index]


def _product(a: Weight, b: Weight) -> Weight:
    """The product of two factors, one of which may depend on the block."""
    a, b = _checked(a), _checked(b)
    if isinstance(a, tuple) and isinstance(b, tuple):
        raise InputError(
            f"Sum(weight={a}): multiplies a weight that depends on the block already, {b}, and "
            "the product is not linear; give one pair"
        )
    if isinstance(a, tuple):
        return a[0] * b, a[1] * b  # type: ignore[operator]
    if isinstance(b, tuple):
        return a * b[0], a * b[1]
    return a * b
