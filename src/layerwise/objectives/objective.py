"""What one block is asked to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from layerwise.arguments import is_finite, shortened
from layerwise.errors import InputError
from layerwise.inputs import Inputs
from layerwise.objectives.activity import Activity, View
from layerwise.objectives.batch import Batch

# A factor in a sum: one for all blocks, or the first block's and the last's, linear in between.
Weight = float | tuple[float, float]


def between(i: int, blocks: int, first: float, last: float) -> float:
    """What block `i` of `blocks` gets of a number that goes linearly over those that have a block
    after them: first + (last - first) i / (blocks - 2); `first` where there is one such block. The
    last block gets `last`."""
    if i == blocks - 1:
        return last
    if blocks == 2:
        return first
    return first + (last - first) * i / (blocks - 2)


@dataclass(frozen=True)
class Site:
    """Where an objective sits, without batch dimensions: found by a dry run, never typed.

    Attributes:
        index: which block, from 0.
        blocks: how many blocks there are.
        shape: the block's output, such as (C, H, W) or (T, D).
        unpooled_shape: the same before the pooling that ends the block; `shape` where none does.
        input_shape: the network's input.
        output_shape: the network's output: (classes,); (T, classes) for one label per token;
            (classes, H, W) for one per pixel.
        channels_first: whether a `shape` of two axes is (D, T), of one-dimensional convolutions.
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
    """A local objective: `objective(activity, batch)` is a scalar for one block to minimise.

    It owns its auxiliary network, which `build` makes once its site is known. Objectives add and
    scale: `0.01 * Classify(head) + 0.99 * other`. A pair of factors changes linearly over the
    blocks, from the first to the last that has a block after it: `(5, 0.5) * Reconstruct()`. An
    objective never differentiates, never steps, and does not know the rule.

    Attributes:
        site: the place it was made for; None until a rule has it.
    """

    site: Site | None = None

    @abstractmethod
    def forward(self, activity: Activity, batch: Batch) -> Tensor:
        """The loss, (), mean over the batch.

        Args:
            activity: what the block computed; `activity.output` is its output, (B, ...).
            batch: the step's inputs and labels.
        """

    def loss_and_scores(self, activity: Activity, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The loss, (), and the class scores that were computed on the way to it, (B, C), detached,
        or None."""
        return self(activity, batch), None

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

    def number(self, index: int, blocks: int) -> None:
        """Called by the rule before anything else is asked: this is block `index` of `blocks`."""

    @property
    def needs_site(self) -> bool:
        """Whether it cannot do without `build`; by default where it has one of its own."""
        return type(self).build is not Objective.build

    @property
    def views(self) -> tuple[View, ...]:
        """Further views of the input that are to pass through the blocks up to this one; the
        block's output for each is then in `activity.views`."""
        return ()

    @property
    def needs_views(self) -> int:
        """The number of augmented views of every sample that it compares at least, in
        `activity.augmented`; 0 where it does not read them. There may be more
        (`data.Loader(views=...)`)."""
        return 0

    @property
    def reads_unpooled(self) -> bool:
        """Whether it reads `activity.unpooled`."""
        return False

    @property
    def reads_input(self) -> bool:
        """Whether it may read `batch.x`; a process that holds only later blocks goes without the
        images where no objective does."""
        return True

    def predict(self, h: Tensor, inputs: Inputs = None) -> Tensor | None:
        """Class scores from the block's output, or None where the objective gives none.

        Args:
            h: the block's output, (B, ...).
            inputs: what the network was given, of which heads read a padding mask; without it no
                token is taken for padding.
        """
        return None

    def illustrate(self, activity: Activity, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """The target and the prediction, both as images (B, C, H, W) on the scale of the network's
        input; None where it makes no images."""
        return None

    def parts(self) -> list[tuple[float, Objective]]:
        """What the loss is the weighted sum of."""
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
    """An objective that computes class scores on the way to its loss."""

    @abstractmethod
    def forward(
        self, activity: Activity, batch: Batch, scores: list[Tensor] | None = None
    ) -> Tensor:
        """The loss, (), mean over the batch; the class scores, detached, are put into `scores`."""

    def loss_and_scores(self, activity: Activity, batch: Batch) -> tuple[Tensor, Tensor | None]:
        scores: list[Tensor] = []
        loss = self(activity, batch, scores)
        return loss, scores[0] if scores else None


class Sum(Predicting):
    """A weighted sum of objectives; a term of weight zero is not computed.

    Args:
        terms: pairs of weight and objective; a weight is a number, or a pair of them that goes
            linearly over the blocks (`between`).

    Raises:
        InputError: a weight that is neither; in a step, a pair where no rule has said which block
            this is.
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
                    f"Sum: the weight {given} goes over the blocks, and no rule has said which "
                    "block this is; give the sum to a rule, or call number(index, blocks)"
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
            f"Sum(weight={shortened(weight)}): give one finite number, or the first block's and "
            "the last's: (5, 0.5)"
        )
    return float(weight[0]), float(weight[1])  # type: ignore[index]


def _product(a: Weight, b: Weight) -> Weight:
    """Of two factors, one of which may go over the blocks."""
    a, b = _checked(a), _checked(b)
    if isinstance(a, tuple) and isinstance(b, tuple):
        raise InputError(
            f"Sum(weight={a}): multiplies a weight that goes over the blocks already, {b}, which "
            "is no longer linear; give one pair"
        )
    if isinstance(a, tuple):
        return a[0] * b, a[1] * b  # type: ignore[operator]
    if isinstance(b, tuple):
        return a * b[0], a * b[1]
    return a * b
