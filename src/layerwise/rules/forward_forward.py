"""Forward-Forward: every block tells inputs with their own label from those with a wrong one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.blocks.chain import Passes
from layerwise.errors import InputError
from layerwise.inputs import Inputs, detached
from layerwise.labels import class_numbers
from layerwise.objectives import Activity
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import Done, LocalRule, Needs, differentiate
from layerwise.rules.families.goodness import Goodness, goodness, normalized
from layerwise.rules.families.label_embedding import LabelPixels, LabelWaves


class ForwardForward(LocalRule):
    """Forward-Forward: every block except the last learns to give high goodness (mean square
    activity) to inputs with their own label embedded, and low goodness to inputs with a wrong
    label.

    Hinton 2022 (arXiv:2212.13345), supervised. With x(c) the input in which label c is embedded,
    N(h) = h / rms(h) a sample's activities scaled to a mean square of 1, and theta the threshold;
    sg[] stops the gradient:

        h_k(c) = f_k(sg[N(h_{k-1}(c))]),    h_0(c) = x(c),    k < K
        g_k(c) = mean_j h_kj(c)^2 - theta
        grad_k = d mean_b (softplus(-g_k(y)) + softplus(g_k(c))) / 2 / d f_k

    The wrong label c of each sample is drawn anew in every step. N removes the length of the
    activities, so that a block cannot read off the goodness of the block before it. Like the
    embedding, N is a part of the rule and not of the model, so predictions are `rule(x)` instead of
    `model(x)`. Hinton describes two ways to predict:

    - By the classifier (default): the last block, which is the network's own classifier, learns by
      cross-entropy from N(h_{K-1}) of inputs with a neutral label, in which every class has weight
      1/C. Its scores are `forward` and `report.logits`.
    - With `by_goodness`: the score of class c is the sum of g_k(c) over the hidden blocks so far,
      except the first if there are more. All C labels take one pass on a batch C times as large.
      These scores are `exits`, and after all hidden blocks `forward`; training steps and
      `report.logits` remain those of the classifier.

    A block waits for nothing but its input, and its graph is freed before the next block runs. With
    one block nothing is embedded and it is backpropagation.

    Deviations: the classifier reads the last hidden block instead of all hidden blocks except the
    first. There is no peer normalization. BatchNorm sees the positive and the negative inputs
    together, and the neutral ones separately.

    Args:
        blocks: the network's blocks, made with an example input.
        threshold: theta, the mean square activity between positive and negative inputs; positive.
        mean: whether goodness is the mean square of the activities. False gives Hinton's sum, g =
            sum_j h_kj^2 - threshold d_k for d_k units; the odds then grow with a block's width.
        hard: whether wrong labels are drawn by the classifier's probabilities instead of uniformly.
            A step then begins with a pass through the whole network, so blocks cannot train in
            several processes.
        by_goodness: whether predictions are made by goodness instead of by the classifier.
        waves: whether a label is embedded as a wave on the whole image, where convolutions see it,
            instead of in the first C pixels.
        strength: the size of an embedded label, on the scale of the inputs; positive.
        criterion: the loss function of the network's output: takes class scores and labels, returns
            a scalar.

    Raises:
        InputError: `blocks` is not a `Blocks`; `blocks` was made without an example; a network with
            a label for every token, or with fewer than two classes; inputs that are too small for
            the labels; with `waves`, inputs that are not images; a threshold or strength that is
            not positive; in `backward`, inputs that are not one tensor of real numbers, such as
            tokens; in `backward`, labels that are not class numbers, such as soft ones.
    """

    stochastic = True

    @checks_arguments
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
        if not threshold > 0:
            raise InputError(f"ForwardForward(threshold={threshold}): give a positive number")
        super().__init__(blocks, Goodness(threshold, mean), criterion)
        shape, classes = _checked(blocks)
        self.threshold, self.mean = threshold, mean
        self.hard, self.by_goodness = hard, by_goodness
        if len(blocks) == 1:
            return
        embedding = LabelWaves if waves else LabelPixels
        self.embedding = embedding(shape, classes, strength, "ForwardForward")
        self.moved(0, self.embedding)
        if hard:
            self.needs = Needs.FORWARD | Needs.ERROR

    def local_step(self, k: int, h: Any, batch: Batch, neutral: Tensor | None = None) -> Done:
        """The step of block k.

        h is N(h_{k-1}) of the positive inputs, followed by that of the negative inputs, (2 B, ...).
        N(h_{k-1}) of the neutral inputs is carried along; the last block gets only the latter.
        """
        if k == len(self.blocks) - 1:
            return self._classify(h, batch)
        if k == 0:
            right = self._right(batch)
            neutral = self._neutral(h)
            classes = self.embedding.classes
            other = torch.randint(1, classes, (batch.rows,), device=right.device)
            wrong = (class_numbers(batch.labels, "ForwardForward") + other) % classes
            h = self._pairs(h, right, wrong)
        h, loss = self._separate(k, h, batch)
        assert neutral is not None
        with torch.no_grad():
            neutral = normalized(batch.run(k, neutral, stream=1))
        if k == len(self.blocks) - 2:
            return Done(neutral, loss)
        return Done(normalized(h), loss, carry=(neutral,))

    def step(self, batch: Batch) -> Tensor:
        if not self.hard or len(self.blocks) == 1:
            return super().step(batch)
        last = len(self.blocks) - 1
        neutral = self._neutral(batch.inputs)
        with torch.no_grad():
            for k in range(last):
                neutral = normalized(batch.run(k, neutral, stream=1))
        classified = self._classify(neutral, batch)
        # The largest entry of z plus Gumbel noise is a draw from softmax(z).
        right = self._right(batch)
        noise = -torch.empty_like(right).exponential_().log()
        wrong = (classified.out + noise).masked_fill(right > 0, -torch.inf).argmax(1)
        h = self._pairs(batch.inputs, right, wrong)
        del neutral, right, noise
        for k in range(last):
            h, of_block = self._separate(k, h, batch)
            batch.done(k, of_block)
            h = normalized(h)
        batch.done(last, classified.loss, classified.scores)
        return classified.out

    def _classify(self, h: Any, batch: Batch) -> Done:
        """The step of the last block, on N(h_{K-1}) of the neutral inputs."""
        last = len(self.blocks) - 1
        h = batch.run(last, detached(h), stream=1)
        loss, scores = self.loss(last, Activity(h), batch)
        differentiate(loss, batch.scale)
        return Done(h.detach(), loss.detach(), scores)

    def _separate(self, k: int, h: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The step of block k on N(h_{k-1}) of positive and negative inputs, (2 B, ...).

        Returns:
            h_k, detached, and the loss, ().
        """
        h = batch.run(k, h.detach())
        loss, _ = self.loss(k, Activity(h), batch)
        differentiate(loss, batch.scale)
        return h.detach(), loss.detach()

    def _right(self, batch: Batch) -> Tensor:
        """The labels in the form that the embedding takes, (B, C)."""
        labels = class_numbers(batch.labels, "ForwardForward")
        return self.embedding.of(labels, self.embedding.checked(batch.inputs))

    def _neutral(self, x: Inputs) -> Tensor:
        """N of the inputs with a neutral label, (B, ...)."""
        x = self.embedding.checked(x)
        return normalized(self.embedding(x, self.embedding.neutral(x).unsqueeze(0)))

    def _pairs(self, x: Inputs, right: Tensor, wrong: Tensor) -> Tensor:
        """N of the inputs with their own label, followed by those with a wrong one, (2 B, ...)."""
        x = self.embedding.checked(x)
        return normalized(self.embedding(x, torch.stack([right, self.embedding.of(wrong, x)])))

    def forward(self, inputs: Inputs) -> Tensor:
        """The class scores, (B, C)."""
        scores = self.exits(inputs)[-1]
        assert scores is not None
        return scores

    def activities(self, inputs: Inputs) -> list[Tensor]:
        """h_k for inputs with a neutral label, also with `by_goodness`."""
        if len(self.blocks) == 1:
            return super().activities(inputs)
        x = self.embedding.checked(inputs)
        h, found = self.embedding(x, self.embedding.neutral(x).unsqueeze(0)), []
        with self.blocks.passes(h) as passes:
            for k in range(len(self.blocks)):
                h = passes.run(k, normalized(h))
                found.append(h)
        return found

    def exit(self, k: int, h: Any, passes: Passes, so_far: Tensor | None = None) -> Done:
        """Block k at inference, on N(h_{k-1}) of the inputs with a neutral label.

        With `by_goodness`, h is that of the inputs with each of the C labels, (C B, ...), and the
        goodness so far, (C B,), is carried along.
        """
        last = len(self.blocks) - 1
        if last == 0:
            return super().exit(k, h, passes)
        if k == 0:
            labels = self.embedding
            h = labels.checked(h)
            shares = labels.every(h) if self.by_goodness else labels.neutral(h).unsqueeze(0)
            h = normalized(labels(h, shares))
        if not self.by_goodness:
            h = passes.run(k, h)
            return Done(h, scores=h) if k == last else Done(normalized(h))
        if k < last:
            h = passes.run(k, h)
            g = goodness(h, self.threshold, self.mean)
            counts = k > 0 or last == 1  # the first block counts only if it is the one hidden block
            g = g if counts else torch.zeros_like(g)
            so_far = g if so_far is None else so_far + g
            h = normalized(h)
        assert so_far is not None
        scores = so_far.view(self.embedding.classes, -1).T
        return Done(h, scores=scores if k or last == 1 else None, carry=(so_far,))


def _checked(blocks: Blocks) -> tuple[tuple[int, ...], int]:
    """The shape of an input, and the number of classes."""
    shape, (*_, scores) = blocks.known_shapes("ForwardForward", "no label can be embedded")
    if len(scores) != 1 or scores[0] < 2:
        raise InputError(
            f"ForwardForward: the network gives scores of {scores} for a sample; the rule "
            "needs one label per sample, of two or more classes: take rules.DGL"
        )
    return shape, scores[0]
