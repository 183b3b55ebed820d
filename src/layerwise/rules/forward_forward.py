"""Forward-Forward: every block tells inputs with their label from inputs with a wrong one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from layerwise.blocks import Blocks
from layerwise.blocks.chain import Passes
from layerwise.errors import InputError
from layerwise.inputs import Inputs
from layerwise.labels import class_numbers
from layerwise.objectives import Classify
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import ForwardRule, Needs, differentiate
from layerwise.rules.families.goodness import Goodness, normalized
from layerwise.rules.families.label_embedding import LabelPixels, LabelWaves


class ForwardForward(ForwardRule):
    """Forward-Forward: every block but the last makes its goodness, the mean square of its
    activities, large where the input has its label embedded and small where it has a wrong one.

    Hinton 2022 (arXiv:2212.13345), supervised. With x(c) the input that has label c embedded, and
    N(h) = h / rms(h) a sample's activities at a mean square of 1:

        h_k(c) = f_k(sg[N(h_{k-1}(c))]),    h_0(c) = x(c),    k < K
        g_k(c) = mean_j h_kj(c)^2 - theta
        grad_k = d mean_b (softplus(-g_k(y)) + softplus(g_k(c))) / 2 / d f_k

    with a wrong label c for every sample, drawn anew in every step. N takes the length away, so
    that a block cannot read off what the one before it found. Like the embedding it is a part of
    the rule and not of the model: predictions are `rule(x)`, not `model(x)`, in one of Hinton's two
    ways.

    - The last block, the network's own classifier, learns by cross-entropy from N(h_{K-1}) of the
      inputs with a neutral label, every class by 1/C. That is `forward`, and `report.logits`.
    - `by_goodness`: the score of c is g_k(c) summed over the blocks so far but the first, for all C
      labels in one pass of C times the batch. That is `exits`, and `forward` after all hidden
      blocks; steps and `report.logits` stay the classifier's.

    A block waits for nothing but its input, and its graph is gone before the next block runs. With
    one block nothing is embedded and it is backpropagation.

    Deviations: the classifier reads the last hidden block, not all but the first; no peer
    normalization. BatchNorm sees the positive and negative inputs together, the neutral ones apart.

    Args:
        blocks: the network, made with an example.
        threshold: theta, the mean square that is neither positive nor negative.
        mean: false for g = sum_j h_kj^2 - threshold d_k with d_k units, as Hinton's; odds then grow
            with a block's width.
        hard: draw wrong labels with the classifier's probability, and not all alike. A step then
            begins with a pass of the whole network, so blocks cannot train in several processes.
        by_goodness: predict by goodness.
        waves: embed a label as a wave on the whole image, where convolutions see it, and not in its
            first C pixels.
        strength: of an embedded label, on the scale of the inputs.
        criterion: of class scores and labels, a scalar; the last block's.

    Raises:
        InputError: shapes between the blocks are not known; a label for every token, or one class;
            inputs without room for the labels; in a step, tokens, and labels that are no class
            numbers, such as soft ones; a threshold or a strength that is not positive.
    """

    draws = True
    predicts_as_chain = False

    def __init__(
        self,
        blocks: Blocks,
        threshold: float = 1.0,
        mean: bool = True,
        hard: bool = False,
        by_goodness: bool = False,
        waves: bool = False,
        strength: float = 1.0,
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks)
        shape, classes = _checked(blocks)
        last = len(blocks) - 1
        for k in range(last):
            self.objectives[str(k)] = Goodness(threshold, mean, "ForwardForward")
        self.objectives[str(last)] = Classify(criterion=criterion)
        self.hard, self.by_goodness = hard, by_goodness
        if not last:
            return
        embedding = LabelWaves if waves else LabelPixels
        self.embedding = embedding(shape, classes, strength, "ForwardForward")
        weight = self._weight(0)
        if weight is not None:
            self.embedding.to(weight)
        if hard:
            self.needs = Needs.FORWARD | Needs.ERROR

    def local_backward(self, i: int, h: Tensor, batch: Batch) -> Tensor:
        """Block i's step. From block to block goes N(h) of the positive and, below, the negative
        inputs, (2 B, ...), with that of the neutral ones along; to the last block the latter."""
        last = len(self.blocks) - 1
        if i == last:  # under `hard` it has learned
            return self._classify(h, batch) if last not in batch.losses else batch.logits[last]
        if i == 0:
            h = self._embedded(h, batch)
        h = batch.run(i, h.detach())
        with self._kept(i, h):
            loss = self.objectives[str(i)](h, batch)
        differentiate(loss, batch.scale)
        batch.finish(i, loss)
        with torch.no_grad():
            neutral = [normalized(batch.run(i, n, stream=1)) for n in batch.along]
            batch.along = tuple(neutral) if i < last - 1 else ()
            return neutral[0] if i == last - 1 and neutral else normalized(h)

    def forward(self, inputs: Inputs) -> Tensor:
        """The class scores, (B, C)."""
        scores = self.exits(inputs)[-1]
        assert scores is not None
        return scores

    def activities(self, inputs: Inputs) -> list[Tensor]:
        """h_k of the inputs with a neutral label, also with `by_goodness`."""
        if len(self.blocks) == 1:
            return super().activities(inputs)
        x = self.embedding.checked(inputs)
        h, found = self.embedding(x, self.embedding.neutral(x).unsqueeze(0)), []
        with self.blocks.passes(h) as passes:
            for k in range(len(self.blocks)):
                h = passes.run(k, normalized(h))
                found.append(h)
        return found

    def exit(self, i: int, h: Any, passes: Passes) -> tuple[Tensor, Tensor | None]:
        """What block i gives to the next, and the class scores there. By goodness that is N(h) for
        every label, flat, with the goodness so far in a last column: (C B, d + 1)."""
        last = len(self.blocks) - 1
        by_goodness = self.by_goodness and last > 0
        if i == 0 and last:
            labels = self.embedding
            h = labels.checked(h)
            shares = labels.every(h) if by_goodness else labels.neutral(h).unsqueeze(0)
            h = normalized(labels(h, shares))
        if not by_goodness:
            h = passes.run(i, h)
            return (h, h) if i == last else (normalized(h), None)
        so_far = h.new_zeros(())
        if i:
            assert self.blocks.shapes is not None
            h, so_far = h[:, :-1].unflatten(1, self.blocks.shapes[i - 1]), h[:, -1]
        if i < last:
            h = passes.run(i, h)
            goodness = self.objectives[str(i)].of(h)  # type: ignore[operator]
            counts = i > 0 or last == 1  # the first, where there is no other
            so_far = so_far + (goodness if counts else torch.zeros_like(goodness))
            h = torch.cat([normalized(h).flatten(1), so_far.unsqueeze(1)], 1)
        scores = so_far.view(self.embedding.classes, -1).T
        return h, scores if i or last == 1 else None

    def _classify(self, h: Tensor, batch: Batch) -> Tensor:
        """The last block's step, on N(h_{K-1}) of the neutral inputs."""
        last = len(self.blocks) - 1
        scores = batch.run(last, h.detach(), stream=1)
        loss = self.objectives[str(last)](scores, batch)
        differentiate(loss, batch.scale)
        batch.finish(last, loss)
        return scores.detach()

    def _embedded(self, x: Inputs, batch: Batch) -> Tensor:
        """The first block's positive and negative inputs; the neutral ones go along, or ahead."""
        y, labels = class_numbers(batch.y, "ForwardForward"), self.embedding
        x = labels.checked(x)
        right = labels.of(y, x)
        neutral = normalized(labels(x, labels.neutral(x).unsqueeze(0)))
        if self.hard:
            with torch.no_grad():
                for k in range(len(self.blocks) - 1):
                    neutral = normalized(batch.run(k, neutral, stream=1))
            z = self._classify(neutral, batch)
            # The largest of z and Gumbel noise is a draw from softmax(z).
            noise = -torch.empty_like(right).exponential_().log()
            wrong = (z + noise).masked_fill(right > 0, -torch.inf).argmax(1)
        else:
            batch.along = (neutral,)
            wrong = (
                y + torch.randint(1, labels.classes, y.shape, device=y.device)
            ) % labels.classes
        return normalized(labels(x, torch.stack([right, labels.of(wrong, x)])))


def _checked(blocks: Blocks) -> tuple[tuple[int, ...], int]:
    """The shape of an input, and how many classes there are."""
    shape, (*_, scores) = blocks.known_shapes("ForwardForward", "no label can be embedded")
    if len(scores) != 1 or scores[0] < 2:
        raise InputError(
            f"ForwardForward: the network gives scores of {scores} for a sample; it needs one "
            "label a sample, of two classes or more: take rules.DGL"
        )
    return shape, scores[0]
