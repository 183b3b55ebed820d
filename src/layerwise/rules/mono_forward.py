"""Mono-Forward: every layer predicts the labels from a projection of its own activations."""

from __future__ import annotations

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.heads import Head, Linear
from layerwise.objectives import Classify
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import LocalRule


class MonoForward(LocalRule):
    """Mono-Forward: every layer predicts the labels by its goodness for each class, which is a
    linear projection of its own activations.

    Gong, Li & Abdulla 2025 (arXiv:2501.09238). With a_k the activations of layer k and M_k its
    projection matrix:

        G_k = a_k M_k^T,    grad_k = d CE(softmax(G_k), y) / d (f_k, M_k),   a_{k-1} detached

    This is decoupled greedy learning with a linear head without bias that reads every position:
    `DGL` with that head, bit for bit. With one block it is backpropagation. The last block is the
    last layer together with the network's own classifier, which takes the role of M_K. Cut the
    network so that the two are in one block; to have the paper's rule, give the classifier no bias.

    The paper predicts either by the goodness of the last layer, which is `forward`, or by the sum
    over layers. The sum is that of `exits(x)`, which `layerwise evaluate` also measures.

    Args:
        blocks: the network's blocks, one layer each, made with an example input, from which the
            projections take their shapes.
        head: the recipe of the projection.
        criterion: the loss function of every block: takes class scores and labels, returns a
            scalar.

    Raises:
        InputError: `blocks` is not a `Blocks`; `blocks` was made without an example.
    """

    @checks_arguments
    def __init__(
        self,
        blocks: Blocks,
        head: Head = Linear(pool=None, bias=False),
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks, Classify(head, criterion), criterion)
