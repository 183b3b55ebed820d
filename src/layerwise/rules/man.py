"""Momentum auxiliary networks: heads with a moving average of the next block's first layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.blocks.copies import copied, fresh
from layerwise.blocks.inplace import kept
from layerwise.blocks.layout import Shape
from layerwise.blocks.parts import Layers, layers, shapes_of_layers
from layerwise.errors import InputError
from layerwise.heads import MLP, Head
from layerwise.heads.head import refuse_class
from layerwise.inputs import Inputs, applied
from layerwise.objectives import Classify
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import Done, LocalRule, Needs
from layerwise.rules.base.checks import checked


class MAN(LocalRule):
    """Momentum auxiliary network: every head reads its block's output through two copies of the
    next block's first layer, one a moving average of its weights and one that learns.

    Su et al. 2024 (arXiv:2407.05623); with `scaled`, MAN++ (Su et al. 2025, arXiv:2507.16279). With
    theta the weights of the next block's first layer (`layerwise.blocks.parts` defines a layer),
    and h_k = f_k(sg[h_{k-1}]), where sg[] stops the gradient:

        y      = average(h_k) + bias(h_k);       scaled: (2 - s) average(h_k) + s bias(h_k)
        grad_k = d CE(head(y), labels) / d (f_k, head, bias [, s])
        average <- momentum average + (1 - momentum) theta

    The gradient passes through the average but does not train it. The average is updated at the
    start of block k's turn, if the next block has changed since the turn before: it then takes in
    the weights that the next block had in that earlier turn. So every set of weights enters once,
    accumulated batches move the average once, and what the next block learns reaches block k one
    step later.

    If all averaged weights are 0, it is `DGL` with the head (bias, head). With one block it is
    backpropagation. If the last block is the classifier alone, the block before it has `head`
    without these copies.

    Deviation: the average starts as a copy of the next block's first layer (the authors' starts
    from other random weights, which it forgets within some hundreds of steps). BatchNorm layers in
    the average keep running statistics of their own.

    Args:
        blocks: the network's blocks, made with an example input, from which the heads take their
            shapes.
        head: the recipe of the network that reads y. The authors' is `MLPSR`.
        momentum: the share of the average that is kept in a step, in [0, 1].
        scaled: whether to learn the factor s, which starts at 1, as in MAN++.
        criterion: the loss function of every block: takes class scores and labels, returns a
            scalar.

    Raises:
        InputError: `blocks` is not a `Blocks`; `blocks` was made without an example; `head` is a
            class instead of a recipe; a momentum outside [0, 1].
    """

    needs = Needs.FORWARD | Needs.WEIGHTS

    @checks_arguments
    def __init__(
        self,
        blocks: Blocks,
        head: Head = MLP(),
        momentum: float = 0.995,
        scaled: bool = False,
        criterion: Criterion = cross_entropy,
    ):
        refuse_class(head, "MAN(head=...)")
        if not 0 <= momentum <= 1:
            raise InputError(f"MAN(momentum={momentum}): give a share in [0, 1], such as 0.995")
        following = [layers(block) for block in list(checked("MAN", blocks))[1:]]
        # Not registered, because they belong to the next blocks.
        firsts = [of_block[0] for of_block in following]
        known = blocks.shapes is not None  # otherwise no head is made
        shapes = [shapes_of_layers(blocks, k)[1] if known else () for k in range(1, len(blocks))]
        recipes: list[Head] = [
            _Recipe(first, shape, head, scaled) for first, shape in zip(firsts, shapes, strict=True)
        ]
        if following and len(following[-1]) == 1:  # the classifier
            recipes[-1] = head
        super().__init__(blocks, [Classify(recipe, criterion) for recipe in recipes], criterion)
        self.momentum, self._firsts = momentum, firsts
        heads = (self.objectives[k].get_submodule("head") for k in range(len(firsts)))
        self._averages = [head for head in heads if isinstance(head, _Momentum)]

    def local_step(self, k: int, h: Tensor, batch: Batch) -> Done:
        if k < len(self._averages):
            self._averages[k].follow(self._firsts[k], self.momentum)
        return super().local_step(k, h, batch)


class _Recipe(Head):
    """The recipe of a head that reads through two copies of `layer`, whose output has `shape`."""

    def __init__(self, layer: Layers, shape: Shape, head: Head, scaled: bool):
        self.layer, self.shape, self.head, self.scaled = layer, shape, head, scaled

    def __deepcopy__(self, memo: object) -> _Recipe:
        return self  # the layer is the network's

    def __call__(self, in_shape: Shape, out_shape: Shape) -> nn.Module:
        return _Momentum(self.layer, self.head(self.shape, out_shape), self.scaled)


class _Momentum(nn.Module):
    """The head: `head` on average(h) + bias(h), with the copies of `layer`."""

    reads_inputs = True

    def __init__(self, layer: Layers, head: nn.Module, scaled: bool):
        super().__init__()
        self.bias = fresh(layer)
        self.average = _of_buffers(layer)
        self.seen = _of_buffers(layer)  # the next block's weights in the turn before
        self.scale = nn.Parameter(torch.ones(())) if scaled else None
        self.head = head

    def forward(self, h: Tensor, inputs: Inputs = None) -> Tensor:
        average, bias = (layer(kept(layer, h), inputs) for layer in (self.average, self.bias))
        if self.scale is not None:
            average, bias = (2 - self.scale) * average, self.scale * bias
        return applied(self.head, average + bias, inputs)

    @torch.no_grad()
    def follow(self, layer: Layers, momentum: float) -> None:
        """Take in the weights of the turn before, if they have changed since."""
        holders = zip(layer.holders, self.seen.holders, self.average.holders, strict=True)
        found = [
            (p, seen.get_buffer(key), average.get_buffer(key))
            for module, seen, average in holders
            for key, p in module._parameters.items()
            if p is not None
        ]
        if not found:
            return
        # Computed on the device, so that the host does not wait.
        moved = torch.stack([torch.ne(p, before).any() for p, before, _ in found]).any()
        for p, before, mean in found:
            mean.lerp_(before, moved.to(p.dtype) * (1 - momentum))
            before.copy_(p)


def _of_buffers(layer: Layers) -> Layers:
    """A copy whose weights are buffers, which are part of the state but never trained."""
    made = copied(layer)
    assert isinstance(made, Layers)
    for module in [*made.holders, *made.modules()]:
        for name, p in list(module._parameters.items()):
            if p is not None:
                module._buffers[name] = p.detach()
                del module._parameters[name]
    return made
