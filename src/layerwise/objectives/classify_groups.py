"""Predict groups of classes, which gives earlier blocks easier tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.arguments import checks_arguments, shortened
from layerwise.errors import InputError
from layerwise.heads import MLP, Head
from layerwise.heads.head import refuse_class
from layerwise.inputs import Inputs, applied
from layerwise.objectives.activity import Activity
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.objectives.objective import Predicting, Site

Levels = Sequence[Sequence[int]]  # coarsest first; a level has the group of class 0, 1, ...


class ClassifyGroups(Predicting):
    """Predict the group of classes that the label belongs to; groups become finer with every block.

    Block i predicts the groups of level i. After the last level every class is its own group, and
    the objective is `Classify`. The levels are either given or found from a confusion matrix. In
    the second case block i has min(2^(i+1), classes) groups, and classes that are often mistaken
    for one another share a group.

    Args:
        head: recipe of the auxiliary network, which gives one score for each group.
        groups: a list of levels; a level lists the group of every class. For example,
            [[0, 0, 1, 1], [0, 1, 2, 2]] separates classes 0 and 1 from 2 and 3 at block 0, and
            leaves only 2 and 3 together at block 1.
        confusion: instead of `groups`, the name of a JSON file with a C x C table under
            "confusion": how often each class (row) was taken for each class (column).
            `layerwise evaluate RUN --split validation` writes it.
        criterion: a function of group scores and groups that returns a scalar.

    Raises:
        InputError: not exactly one of `groups` and `confusion`; a file that cannot be used; levels
            of different classes, or a level that does not divide the groups before it; when it is
            built, another number of classes than the network's.
    """

    groups: Tensor  # (C,), the group of every class at this block

    @checks_arguments
    def __init__(
        self,
        head: Head = MLP(),
        groups: list[list[int]] | None = None,
        confusion: str | None = None,
        criterion: Criterion = cross_entropy,
    ):
        super().__init__()
        refuse_class(head, "ClassifyGroups(head=...)")
        if groups is not None and confusion is not None:
            raise InputError("ClassifyGroups: got both groups and confusion; give one of them")
        if confusion is not None:
            counts = _read_confusion(confusion)
            self.classes = len(counts)
            doubling = [2**k for k in range(1, self.classes.bit_length()) if 2**k < self.classes]
            self.levels = groups_from_confusion(counts, doubling)
        elif groups is not None:
            self.levels = _checked(groups)
            self.classes = len(self.levels[0])
        else:
            raise InputError(
                "ClassifyGroups: got neither groups nor confusion; give levels such as "
                "groups=[[0, 0, 1, 1]], or a file of `layerwise evaluate` as confusion"
            )
        self.head: nn.Module = nn.Identity()
        self.recipe = head
        self.criterion = criterion
        self.count = 0
        self._every_class = False

    def build(self, site: Site) -> None:
        if site.output_shape[-1:] != (self.classes,):
            raise InputError(
                f"ClassifyGroups: got groups of {self.classes} classes, but the network gives "
                f"{site.output_shape} for each sample; give each of its classes a group"
            )
        found = range(self.classes) if site.index >= len(self.levels) else self.levels[site.index]
        self.register_buffer("groups", torch.tensor(found))
        self.head = self.recipe(site.shape, (*site.output_shape[:-1], max(found) + 1))
        self.count = max(found) + 1
        self._every_class = self.count == self.classes

    @property
    def reads_input(self) -> bool:
        return False

    def predict(self, h: Tensor, inputs: Inputs = None) -> Tensor | None:
        """Class scores, (B, C) or (B, T, C), if every class is its own group; otherwise None."""
        return applied(self.head, h, inputs) if self._every_class else None

    def _groups_of(self, y: Tensor) -> Tensor:
        """The groups of labels; for probabilities of classes, the probabilities of the groups."""
        if y.is_floating_point():
            axis = 1 if y.dim() > 3 else -1
            groups = F.one_hot(self.groups, self.count).to(y.dtype)
            return (y.movedim(axis, -1) @ groups).movedim(-1, axis)
        return torch.where(y < 0, y, self.groups[y.clamp(min=0)])

    def forward(
        self, activity: Activity, batch: Batch, scores: list[Tensor] | None = None
    ) -> Tensor:
        logits = applied(self.head, activity.output, batch.inputs)
        if scores is not None and self._every_class:
            scores.append(logits.detach())
        return self.criterion(logits, self._groups_of(batch.labels))


def groups_from_confusion(confusion: Tensor, counts: Sequence[int]) -> list[list[int]]:
    """Groups of classes that are mistaken for one another.

    Agglomerative clustering with average linkage: the two groups whose classes are confused most
    are joined, repeatedly. The confusion of two classes is the mean of two shares: the share of
    each class that was taken for the other. All levels are cuts of one tree, so each group lies
    within one group of any coarser level.

    Args:
        confusion: how often each class (row) was taken for each class (column), (C, C).
        counts: the number of groups of each level, 1 to C.

    Returns:
        For each of `counts` a list of C numbers, the group of every class. Groups are numbered in
        the order of their first class.

    Raises:
        InputError: not a square matrix of two classes or more; an entry that is negative or not
            finite; a level without groups, or with more groups than classes.
    """
    from scipy.cluster import hierarchy  # slow to import, and only needed here
    from scipy.spatial.distance import squareform

    _refuse_unless_counts(confusion, "groups_from_confusion(confusion)")
    confusion = confusion.detach().double().cpu()
    classes = len(confusion)
    if wrong := [count for count in counts if not 1 <= count <= classes]:
        raise InputError(
            f"groups_from_confusion(counts={list(counts)}): {classes} classes cannot form "
            f"{wrong[0]} groups; give numbers from 1 to {classes}"
        )
    samples = confusion.sum(1, keepdim=True)
    shares = confusion / samples.where(samples > 0, 1)  # a class may have none
    distance = 1 - (shares + shares.T) / 2
    distance.fill_diagonal_(0)
    tree = hierarchy.linkage(squareform(distance.numpy()), "average")
    # Unlike fcluster, cut_tree gives the number of groups asked for, also among equal distances.
    levels = [hierarchy.cut_tree(tree, [count])[:, 0].tolist() for count in counts]
    return [_numbered(level) for level in levels]


def _numbered(level: Sequence[int]) -> list[int]:
    """Groups numbered in the order of their first class."""
    order = {group: number for number, group in enumerate(dict.fromkeys(level))}
    return [order[group] for group in level]


def _read_confusion(path: str) -> Tensor:
    call = f"ClassifyGroups(confusion={str(path)!r})"
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{call}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{call}: not JSON; give what `layerwise evaluate` writes") from error
    try:
        counts = torch.tensor(content["confusion"], dtype=torch.float64)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f'{call}: holds no table of numbers under "confusion"; give what `layerwise evaluate '
            "RUN --split validation` writes"
        ) from error
    _refuse_unless_counts(counts, call)
    return counts


def _refuse_unless_counts(confusion: Tensor, call: str) -> None:
    if confusion.dim() != 2 or len(confusion) != confusion.shape[1] or len(confusion) < 2:
        raise InputError(
            f"{call}: got shape {tuple(confusion.shape)}; give counts (C, C) for two classes or "
            "more, with a row for each true class"
        )
    if not confusion.isfinite().all() or confusion.lt(0).any():
        raise InputError(
            f"{call}: got counts that are negative or not finite; give how often each class was "
            "taken for each class"
        )


def _is_level(level: object) -> bool:
    return isinstance(level, list | tuple) and all(isinstance(g, int) for g in level)


def _checked(groups: Levels) -> list[list[int]]:
    """The levels, with groups numbered in the order of their first class."""
    call = "ClassifyGroups(groups)"
    if not groups or not all(map(_is_level, groups)):
        raise InputError(
            f"{call}: got {shortened(list(groups))}; give a list of levels, each with the group of "
            "every class: [[0, 0, 1, 1], [0, 1, 2, 2]]"
        )
    classes = len(groups[0])
    if wrong := [k for k, level in enumerate(groups) if len(level) != classes]:
        raise InputError(
            f"{call}: level {wrong[0]} groups {len(groups[wrong[0]])} classes and level 0 "
            f"{classes}; give every level one number for each class"
        )
    for k, level in enumerate(groups):
        count = len(set(level))
        if {*level} != {*range(count)}:
            raise InputError(
                f"{call}: level {k} has groups {sorted(set(level), key=str)}; number them from 0 "
                "without gaps"
            )
        if k == 0 and not 2 <= count < classes:
            raise InputError(
                f"{call}: level 0 has {count} groups for {classes} classes; begin with two or more "
                "groups, and fewer groups than classes"
            )
        # In nested levels every finer group lies in one coarser group.
        if k and len({*zip(groups[k - 1], level, strict=True)}) != count:
            raise InputError(
                f"{call}: a group of level {k} has classes from two groups of level {k - 1}; each "
                "level must divide the groups of the level before it"
            )
    return [_numbered(level) for level in groups]
