"""The outputs of a block that an objective reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

# A further view of the input, computed sample by sample: (B, ...) -> (B, ...).
View = Callable[[Tensor], Tensor]


@dataclass(eq=False, slots=True)
class Activity:
    """The output of one block for a batch of B samples, in every form that an objective can ask
    for.

    Attributes:
        output: the block's output, (B, ...), for the first augmented view of the batch.
        before_pooling: this output before the pooling that ends the block, (B, ...), if an
            objective asks for it (`Objective.reads_unpooled`) and the block ends with a pooling;
            otherwise None.
        views: the block's output, (B, ...), for each further view of the input that an objective
            asks for (`Objective.views`).
        augmented: the block's output for each of the V augmented views of the batch, (V, B, ...),
            if an objective compares them (`Objective.needs_views`); the first is `output`.
            Otherwise None.
        input: the block's own input, (B, ...), detached, if an objective asks for it
            (`Objective.reads_block_input`) and it is one tensor; otherwise None.
    """

    output: Tensor
    before_pooling: Tensor | None = None
    views: Mapping[View, Tensor] = field(default_factory=dict)
    augmented: Tensor | None = None
    input: Tensor | None = None

    @property
    def unpooled(self) -> Tensor:
        """The output before the pooling that ends the block, (B, ...); `output` if no pooling
        does."""
        return self.output if self.before_pooling is None else self.before_pooling
