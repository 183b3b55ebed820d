"""Decoupled greedy learning."""

from __future__ import annotations

from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.heads import MLP, Head
from layerwise.objectives import Classify
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import LocalRule


class DGL(LocalRule):
    """Decoupled greedy learning: every block predicts the labels through a head of its own.

    Belilovsky et al. 2020 (arXiv:1901.08164), algorithm 1: block k minimises the loss of its
    auxiliary network on sg[h_{k-1}]; the last block's head is the network's own classifier. With
    one block it is backpropagation.

    Args:
        blocks: the network, made with an example.
        num_classes: how many class scores a head gives; by default what the network gives.
        head: the auxiliary network. Deviation: the paper's is `MLPSR`, which needs feature maps;
            the default works on any output.
        criterion: of class scores and labels, a scalar; every block's.

    Raises:
        InputError: `num_classes` is not what the network gives.
    """

    def __init__(
        self,
        blocks: Blocks,
        num_classes: int | None = None,
        head: Head = MLP(),
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks, Classify(head, criterion), criterion)
        *_, scores = blocks.shapes or [()]
        # The classes are the last axis of tokens, and the first of maps.
        if num_classes is not None and scores and num_classes not in (scores[0], scores[-1]):
            raise InputError(
                f"DGL(num_classes={num_classes}): the network gives {scores} for each "
                f"sample; leave num_classes out, or make the network with {num_classes}"
            )
