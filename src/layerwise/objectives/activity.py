"""What an objective reads of a block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

# A further view of the input, computed sample by sample: (B, ...) -> (B, ...).
View = Callable[[Tensor], Tensor]


@dataclass(eq=False)
class Activity:
    """The output of one block for a batch of B samples, in every form that an objective can ask
    for.

    Attributes:
        output: the block's output, (B, ...), for the first augmented view of the batch.
        before_pooling: the same before the pooling that ends the block, where an objective asks for
            it (`Objective.reads_unpooled`) and the block ends with one; otherwise None.
        views: the block's output, (B, ...), for each further view of the input that an objective
            asks for (`Objective.views`).
        augmented: where an objective compares augmented views (`Objective.needs_views`), the
            block's output for each of the V augmented views of the batch, (V, B, ...); the first
            is `output`. Otherwise None.
    """

    output: Tensor
    before_pooling: Tensor | None = None
    views: Mapping[View, Tensor] = field(default_factory=dict)
    augmented: Tensor | None = None

    @property
    def unpooled(self) -> Tensor:
        """The output before the pooling that ends the block; the output itself where none does."""
        return self.output if self.before_pooling is None else self.before_pooling
