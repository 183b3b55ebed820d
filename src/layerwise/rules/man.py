"""Heads that read through a moving average of the next block's first layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layerwise.blocks import Blocks
from layerwise.blocks.chain import Shape, dry_run
from layerwise.blocks.copies import copied, fresh
from layerwise.blocks.inplace import kept
from layerwise.blocks.parts import Layers, layers
from layerwise.errors import InputError
from layerwise.heads import MLP, Head
from layerwise.heads.head import refuse_class
from layerwise.inputs import Inputs, applied
from layerwise.objectives import Classify
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import Done, LocalRule, Needs


class MAN(LocalRule):
    """Momentum auxiliary network: every head reads its block through the next block's first layer,
    averaged over the steps, and through a copy of it that learns.

    Su et al. 2024 (arXiv:2407.05623); with `scaled` MAN++ (Su et al. 2025, arXiv:2507.16279).
    With theta the weights of the next block's first layer (`layerwise.blocks.parts`):

        y      = average(h_k) + bias(h_k);       scaled: (2 - s) average(h_k) + s bias(h_k)
        grad_k = d CE(head(y), labels) / d (f_k, head, bias [, s])
        average <- momentum average + (1 - momentum) theta

    The gradient passes through the average, which takes none itself. It takes in the weights that
    the next block had on a batch once both blocks have stepped on it, at the start of block k's
    next turn: each of the weights once, so accumulated batches move it once, and what the next
    block learns reaches block k a step later. With the averaged weights 0 it is `DGL` with the
    head (bias, head); with one block it is backpropagation. A block before the classifier alone
    has the head alone.

    Deviations: the average starts as the next block's first layer itself (the authors': from other
    random weights, which it forgets in some hundred steps). Its BatchNorms' running statistics are
    its own.

    Args:
        blocks: the network, made with an example.
        head: what reads y. The authors' is `MLPSR`.
        momentum: share of the average that is kept in a step.
        scaled: learn s, from 1, as MAN++ does.
        criterion: of class scores and labels, a scalar; every block's.

    Raises:
        InputError: a momentum outside [0, 1].
    """

    needs = Needs.FORWARD | Needs.WEIGHTS

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
        following = [layers(block) for block in list(blocks)[1:]]
        # Not registered: they are the next blocks' own.
        firsts = [of_block[0] for of_block in following]
        recipes: list[Head] = [_Recipe(blocks, first, head, scaled) for first in firsts]
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
    """The recipe of a head that reads through copies of `layer`."""

    def __init__(self, blocks: Blocks, layer: Layers, head: Head, scaled: bool):
        self.blocks, self.layer, self.head, self.scaled = blocks, layer, head, scaled

    def __deepcopy__(self, memo: object) -> _Recipe:
        return self  # the layer is the network's

    def __call__(self, in_shape: Shape, out_shape: Shape) -> nn.Module:
        like = next(self.layer.parameters(), torch.zeros(()))
        with dry_run(self.layer):
            h = like.new_zeros(2, *in_shape)
            shape = tuple(self.layer(h, self.blocks.zeros(2, like)).shape[1:])
        return _Momentum(self.layer, self.head(shape, out_shape), self.scaled)


class _Momentum(nn.Module):
    reads_inputs = True

    def __init__(self, layer: Layers, head: nn.Module, scaled: bool):
        super().__init__()
        self.bias = fresh(layer)
        self.average = _of_buffers(layer)
        self.seen = _of_buffers(layer)  # the weights as they were in the turn before
        self.scale = nn.Parameter(torch.ones(())) if scaled else None
        self.head = head

    def forward(self, h: Tensor, inputs: Inputs = None) -> Tensor:
        average, bias = (layer(kept(layer, h), inputs) for layer in (self.average, self.bias))
        if self.scale is not None:
            average, bias = (2 - self.scale) * average, self.scale * bias
        return applied(self.head, average + bias, inputs)

    @torch.no_grad()
    def follow(self, layer: Layers, momentum: float) -> None:
        """Take in the weights of the turn before, where they have moved since."""
        holders = zip(layer.holders, self.seen.holders, self.average.holders, strict=True)
        found = [
            (p, seen.get_buffer(key), average.get_buffer(key))
            for module, seen, average in holders
            for key, p in module._parameters.items()
            if p is not None
        ]
        if not found:
            return
        # On the device: nothing waits for the answer.
        moved = torch.stack([torch.ne(p, before).any() for p, before, _ in found]).any()
        for p, before, mean in found:
            mean.lerp_(before, moved.to(p.dtype) * (1 - momentum))
            before.copy_(p)


def _of_buffers(layer: Layers) -> Layers:
    """A copy whose weights are buffers: part of the state, and never trained."""
    made = copied(layer)
    assert isinstance(made, Layers)
    for module in [*made.holders, *made.modules()]:
        for name, p in list(module._parameters.items()):
            if p is not None:
                module._buffers[name] = p.detach()
                del module._parameters[name]
    return made
