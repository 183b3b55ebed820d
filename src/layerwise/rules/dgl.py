"""Decoupled greedy learning: every block predicts the labels through a head of its own."""

from __future__ import annotations

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.heads import MLP, Head
from layerwise.objectives import Classify
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import LocalRule


class DGL(LocalRule):
    """Decoupled greedy learning: every block predicts the labels through a head of its own.

    Belilovsky et al. 2020 (arXiv:1901.08164), algorithm 1. Block k maps h_{k-1} to h_k and
    minimises the loss L of its head, an auxiliary network; sg[] stops the gradient:

        h_k    = f_k(sg[h_{k-1}])
        grad_k = d L(head_k(h_k), y) / d (f_k, head_k)

    The head of the last block is the network's own classifier. With one block it is
    backpropagation.

    Deviation: the default head works on any output; the paper's is `MLPSR`, which needs feature
    maps.

    Args:
        blocks: the network's blocks, made with an example input, from which the heads take their
            shapes.
        num_classes: the number of classes that you expect. It is only compared with the network's,
            because every head gives as many class scores as the network.
        head: the recipe of the auxiliary network of every block except the last.
        criterion: the loss function of every block: takes class scores and labels, returns a
            scalar.

    Raises:
        InputError: `blocks` is not a `Blocks`; `blocks` was made without an example; `num_classes`
            differs from the network's number of classes.
    """

    @checks_arguments
    def __init__(
        self,
        blocks: Blocks,
        num_classes: int | None = None,
        head: Head = MLP(),
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks, Classify(head, criterion), criterion)
        *_, scores = blocks.shapes or [()]
        # Class scores are on the last axis for tokens, and on the first for maps.
        if num_classes is not None and scores and num_classes not in (scores[0], scores[-1]):
            raise InputError(
                f"DGL(num_classes={num_classes}): the network gives {scores} for each "
                f"sample; leave num_classes out, or make the network with {num_classes}"
            )
