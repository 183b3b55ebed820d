"""The objectives of a rule's blocks, and a container for modules that only some blocks have."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from torch import nn

from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.heads import Head
from layerwise.objectives import Classify, Distill, Objective, Sum
from layerwise.objectives.classify import Criterion, cross_entropy, is_cross_entropy
from layerwise.objectives.objective import Weight
from layerwise.rules.base.checks import checked

if TYPE_CHECKING:
    from layerwise.rules.base.rule import Rule

Of = TypeVar("Of", bound=nn.Module)

# A rule's `objectives` where only the last block has one.
LAST_ONLY: Sequence[None] = []


class OfBlocks(nn.Module, Generic[Of]):
    """Modules that belong to some of the blocks, as a dict from a block's number to its module.

    `of_blocks[k]` is the module of block k; `of_blocks.get(k)` is None if it has none.
    """

    def __setitem__(self, k: int, module: Of) -> None:
        self.add_module(str(k), module)

    def __getitem__(self, k: int) -> Of:
        return self._modules[str(k)]  # type: ignore[return-value]

    def get(self, k: int) -> Of | None:
        """The module of block k, or None."""
        return self._modules.get(str(k))  # type: ignore[return-value]

    def __contains__(self, k: int) -> bool:
        return str(k) in self._modules

    def __iter__(self) -> Iterator[int]:
        return map(int, self._modules)

    def __len__(self) -> int:
        return len(self._modules)


def one_per_block(
    call: str,
    blocks: Blocks,
    objectives: Objective | Sequence[Objective | None],
    criterion: Criterion,
) -> list[Objective | None]:
    """The objective of each block, from the `objectives` that a rule was given.

    Args:
        call: name of the rule, for errors.
        blocks: the network.
        objectives: one objective, which is copied for every block except the last; or one for each
            block, with None for a block without one; or one for each block except the last; or
            `LAST_ONLY`.
        criterion: the last block's loss if its objective is left out.

    Returns:
        One objective or None for each block; the last block always has one.

    Raises:
        InputError: `blocks` or `objectives` are something else; a wrong number of objectives; None
            for the last block.
    """
    count = len(checked(call, blocks))
    given: list[Objective | None]
    if objectives is LAST_ONLY:
        given = [None] * (count - 1)
    elif isinstance(objectives, Objective):
        given = [copy.deepcopy(objectives) for _ in range(count - 1)]
    else:
        given = list(objectives) if isinstance(objectives, Iterable) else [objectives]
    wrong = [type(o).__name__ for o in given if not isinstance(o, Objective | None)]
    if wrong:
        raise InputError(
            f"{call}(objectives): got {wrong[0]}; give an objective such as "
            "objectives.Classify(heads.Linear()), or a list of them"
        )
    if len(given) == len(blocks) - 1:
        given.append(_of_output(objectives, criterion))
    if len(given) != len(blocks):
        raise InputError(
            f"{call}(objectives): got {len(given)} for {len(blocks)} "
            f"blocks; give {len(blocks)}, or {len(blocks) - 1} to leave the last block to the "
            "network's own classifier"
        )
    if given[-1] is None:
        raise InputError(
            f"{call}(objectives): got None for the last block, so nothing would learn to "
            "predict; leave it out, and it predicts the labels from the network's output"
        )
    modules = [module for o in given if o is not None for module in _own_modules(o)]
    if len(set(modules)) < len(modules):  # every head belongs to one block
        given = [copy.deepcopy(o) for o in given]
    return given


def _of_output(objectives: object, criterion: Criterion) -> Objective:
    """The objective of a last block to which none was given: to predict the labels. If one
    objective was given for all blocks, and `Distill` is a term of it: its terms that need class
    scores, for the block's own output."""
    labels = Classify(criterion=criterion)
    if isinstance(objectives, Distill):
        return objectives.of_output()
    if not isinstance(objectives, Sum) or not any(isinstance(t, Distill) for t in objectives.terms):
        return labels
    terms: list[tuple[Weight, Objective]] = []
    for weight, term in zip(objectives.weights, objectives.terms, strict=True):
        if isinstance(term, Distill | Classify):
            terms.append((weight, term.of_output() if isinstance(term, Distill) else labels))
    return Sum(terms)


def of_heads(call: str, blocks: Blocks, head: Head, criterion: Criterion) -> list[Objective]:
    """An objective for each block except the last: to predict the labels through a head of its own.
    All blocks share one criterion, and its parameters if it has any.

    Raises:
        InputError: `blocks` is not a `Blocks`.
    """
    return [Classify(head, criterion) for _ in range(len(checked(call, blocks)) - 1)]


def _own_modules(objective: Objective) -> set[nn.Module]:
    """The objective and its auxiliary networks, without criteria, which blocks may share."""
    found = set(objective.modules())
    for module in objective.modules():
        criterion = getattr(module, "criterion", None)
        if isinstance(criterion, nn.Module):
            found -= set(criterion.modules())
    return found


def criterion_of(rule: Rule) -> Criterion:
    """How class scores are evaluated: cross-entropy without label smoothing, or the user's own
    criterion."""
    last = rule.objectives[len(rule.blocks) - 1]
    found = getattr(last, "criterion", getattr(rule, "criterion", cross_entropy))
    return cross_entropy if is_cross_entropy(found) else found  # type: ignore[return-value]
