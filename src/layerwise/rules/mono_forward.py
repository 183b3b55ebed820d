"""Mono-Forward: every layer scores the classes by a projection of its own activations."""

from __future__ import annotations

from layerwise.blocks import Blocks
from layerwise.heads import Head, Linear
from layerwise.objectives import Classify
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import LocalRule


class MonoForward(LocalRule):
    """Mono-Forward: a linear projection of a layer's activations gives its goodness for each class.

    Gong, Li & Abdulla 2025 (arXiv:2501.09238), with a_k the activations of layer k, M_k its
    projection matrix:

        G_k = a_k M_k^T,    grad_k = d CE(softmax(G_k), y) / d (f_k, M_k),   a_{k-1} detached

    That is decoupled greedy learning with a linear head without bias on every position, and this
    rule is `DGL` with that head, bit for bit; with one block it is backpropagation. The last block
    is the last layer with the network's own classifier, which is its M_K: cut so that the two are
    together, and make the classifier without bias to have the paper's.

    The paper predicts by the last layer's goodness, which is `forward`, or by the sum over layers:
    that of `exits(x)`, which `layerwise evaluate` measures as well.

    Args:
        blocks: the network, one layer each, made with an example.
        head: the projection.
        criterion: of class scores and labels, a scalar; every block's.
    """

    def __init__(
        self,
        blocks: Blocks,
        head: Head = Linear(pool=None, bias=False),
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks, Classify(head, criterion), criterion)
