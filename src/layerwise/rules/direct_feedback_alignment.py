"""Direct feedback alignment: the output's error goes to every block through a random matrix."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from layerwise.blocks import Blocks
from layerwise.errors import InputError, choices
from layerwise.inputs import detached
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import Needs, Rule, differentiate
from layerwise.rules.calls.as_written import as_written
from layerwise.rules.calls.sent_gradients import sending
from layerwise.rules.families.projection import Projections, layer_inputs, layer_key


class DirectFeedbackAlignment(Rule):
    """Direct feedback alignment: the gradient of every block's output is the network's output error
    through a fixed random matrix of the block's own.

    Nøkland 2016 (arXiv:1609.01596), eq. 7; for transformers Launay et al. 2020 (arXiv:2006.12878).
    With the class scores z:

        e      = dL/dz
        grad_k = (e B_k) dh_k / d f_k,    h_k = f_k(sg[h_{k-1}]),    k < K

    The last block learns as in backpropagation. No gradient passes between blocks, and that of a
    block's input is never computed; within a block it is the true one, so the paper's rule is that
    of blocks of one layer. With B_k the true dz/dh_k, and with one block, it is backpropagation.

    With `at` only these blocks' outputs get the error. Blocks between two of them learn together,
    by backpropagation, as if they were one; with none it is backpropagation.

    With `layers` the error also goes into the blocks (Launay et al.'s "micro", where blocks of a
    transformer's layers without it are "macro"): every linear and convolutional layer, of those
    that read anything but a block's input, sends its input e B in the place of a gradient through
    its weight. On one block of a chain of layers that is the paper's rule, with no cut at all.

    With `normalize` the error goes to the output as layer normalisation leaves it, without its
    parameters, and from there to the output by its true gradient:

        grad_k = (e B_k) dN(h_k) / d f_k,    N(h) = (h - mean) / std

    over the features of vectors and tokens, over all units of feature maps. It is not of the
    papers. Where blocks add to a residual stream, e B_k alone pushes every token the same way,
    whatever its size: the stream grows, tokens become alike, and the network's last normalisation,
    which would take both from a true gradient, is not on the error's way.

    Every block's graph is kept until the error is there, as in backpropagation.

    Deviations: class scores for every token go back token by token; an output (B, T, D) of a
    network that gives one label has the same projection for all T; feature maps have one of their
    own for every unit, as in the paper. Launay et al. put the error behind a layer's activation,
    here it comes to what the next layer reads, which is the same but for what lies between.

    Args:
        blocks: the network, made with an example.
        scale: B_k ~ U(-scale / sqrt(d_k), scale / sqrt(d_k)) with d_k units in the block's output.
        shared: keep one matrix for all (Launay et al.), whose first d_k columns are B_k.
        at: names or numbers of the blocks whose output gets the error; null for all.
        layers: send it to the layers within blocks, too.
        criterion: of class scores and labels, a scalar.
        normalize: send it through a normalisation of the block's output.

    Raises:
        InputError: as `Projections`; no such block; with `layers`, one that reads inputs of several
            sizes.
    """

    needs = Needs.FORWARD | Needs.ERROR

    def __init__(
        self,
        blocks: Blocks,
        scale: float = 1.0,
        shared: bool = False,
        at: tuple[str | int, ...] | None = None,
        layers: bool = False,
        criterion: Criterion = cross_entropy,
        normalize: bool = False,
    ):
        super().__init__(blocks, criterion=criterion)
        last = len(blocks) - 1
        numbers = range(last) if at is None else _numbers(blocks, at)
        self.ends = sorted({*numbers, last})  # of what learns together, the last blocks
        self.layers, self.normalize = layers, normalize
        call = "DirectFeedbackAlignment"
        inputs = layer_inputs(blocks, self.ends, f"{call}(layers=True)") if layers else {}
        self.feedback = Projections(blocks, scale, shared, call, self.ends, inputs)

    def step(self, batch: Batch) -> Tensor:
        error = Error()
        with self._sending(error):
            outputs = self._forward(batch)  # h_k of the blocks that the error goes to
            last = len(self.blocks) - 1
            scores = outputs[last].detach()
            loss, error.e = self.output_error(scores, batch, batch.scale)
            for before, k in reversed([*pairwise([-1, *self.ends])]):
                h = outputs.pop(k)
                if h.requires_grad:
                    asked = error.e if k == last else self._projected(k, error.e, h)  # e B_k
                    differentiate(h, gradient=asked)
                del h  # and its graph
                for j in range(k, before, -1):
                    batch.done(j, *((loss, scores) if j == last else ()))
        return scores

    def _forward(self, batch: Batch) -> dict[int, Tensor]:
        """The output of each of `ends`, with the graph since the one before; what is to take the
        error is normalised, where that is asked for."""
        last, outputs = len(self.blocks) - 1, {}
        h = detached(batch.inputs)
        for k in range(last + 1):
            begins = k - 1 in outputs
            h = batch.run(k, h.detach() if begins else h, keep=begins)
            if k in self.ends:
                outputs[k] = _normalized(h) if self.normalize and k < last else h
        return outputs

    @torch.no_grad()
    def _projected(self, k: int, e: Tensor, h: Tensor) -> Tensor:
        with torch.autocast(h.device.type, enabled=False):
            return self.feedback(k, e, h.shape)

    @contextlib.contextmanager
    def _sending(self, error: Error) -> Iterator[None]:
        """Within, layers send the projected error to their input."""
        if not self.layers:
            yield
            return
        names: dict[Tensor, str] = {
            weight: layer_key(k, name)
            for k, block in enumerate(self.blocks)
            for name, weight in block.named_parameters()
            if layer_key(k, name) in self.feedback.layers
        }

        def gradient(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
            return self.feedback.to_layer(names[weight], error.e, shape)

        with as_written(self.blocks), sending(names, gradient):
            yield


class Error:
    """The error of a step: the gradient of the scaled loss at the output, known once the forward
    pass has ended."""

    e: Tensor


def _normalized(h: Tensor) -> Tensor:
    """Mean 0 and mean square 1 over features, (B, D) and (B, T, D), or all units, (B, C, H, W)."""
    return F.layer_norm(h, h.shape[-1:] if h.dim() <= 3 else h.shape[1:])


def _numbers(blocks: Blocks, at: Sequence[str | int]) -> list[int]:
    """The numbers of blocks given by name or number."""
    known = {name: k for k, name in enumerate(blocks.names)}
    known = {str(k): k for k in range(len(blocks))} | known
    for one in at:
        if str(one) not in known:
            raise InputError(
                f"DirectFeedbackAlignment(at): no block {one!r}; {choices(str(one), blocks.names)}"
            )
    return [known[str(one)] for one in at]
