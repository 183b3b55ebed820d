"""Direct feedback alignment: random matrices send the output's error to every block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from layerwise.arguments import checks_arguments
from layerwise.autocast import without_autocast
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
    """Direct feedback alignment: the gradient of every block's output is the network's output
    error, multiplied by a fixed random matrix.

    Nøkland 2016 (arXiv:1609.01596), eq. 7; for transformers Launay et al. 2020 (arXiv:2006.12878).
    With the class scores z, the loss L, and B_k the random matrix of block k; sg[] stops the
    gradient:

        e      = dL/dz
        grad_k = (e B_k) dh_k / d f_k,    h_k = f_k(sg[h_{k-1}]),    k < K

    The last block learns as in backpropagation. No gradient passes between blocks, and the gradient
    of a block's input is never computed. Within a block the gradient is the true one, so the
    paper's rule is the case of blocks of one layer. With one block it is backpropagation. It is
    also backpropagation if every B_k is the true dz/dh_k.

    With `at`, the error goes only to the outputs of the given blocks. Blocks between two of them
    learn together by backpropagation, as if they were one block. With `at=()` it is
    backpropagation.

    With `layers`, the error also goes to layers inside the blocks (Launay et al. call this "micro",
    and a transformer with each layer a block "macro"). Every linear or convolutional layer that
    does not read a block's input sends e B to its input instead of a gradient through its weight.
    On a chain of layers in one block this is the paper's rule without any cut.

    With `normalize`, the error goes to the output of a layer normalisation N without parameters,
    and from there to the block's output by the true gradient of N:

        grad_k = (e B_k) dN(h_k) / d f_k,    N(h) = (h - mean) / std

    Mean and standard deviation are over the features of vectors and tokens, and over all units of
    feature maps. This option is not in the papers. It helps if blocks add to a residual stream.
    There, e B_k alone pushes every token in the same direction, whatever the token's size: the
    stream grows and tokens become alike. The network's last normalisation removes both from a true
    gradient, but the projected error does not pass through it.

    Every block's graph is kept until the error is known, as in backpropagation.

    Deviations: if the network gives class scores for every token, the error goes back token by
    token. If it gives one label and a block's output is (B, T, D), all T tokens get the same
    projection. Launay et al. send the error to a layer's activation; here it goes to the input of
    the next layer, which differs only by what lies between the two.

    Args:
        blocks: the network's blocks, made with an example input.
        scale: a positive factor: B_k ~ U(-scale / sqrt(d_k), scale / sqrt(d_k)) for d_k units in
            the output of block k.
        shared: whether all blocks use one matrix (Launay et al.), whose first d_k columns are B_k.
        at: the blocks whose outputs get the error, by name or by number from 0; null for all.
        layers: whether the error also goes to the layers inside the blocks.
        criterion: the loss function of the network's output: takes class scores and labels, returns
            a scalar.
        normalize: whether the error passes through a normalisation of the block's output.

    Raises:
        InputError: `blocks` is not a `Blocks`; as `Projections`; `at` contains something that is
            not the name or number of a block; with `layers`, a layer reads inputs of several sizes,
            or rows that do not belong to one sample each.
    """

    needs = Needs.FORWARD | Needs.ERROR

    @checks_arguments
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
        self.ends = sorted({*numbers, last})  # the last block of each group that learns together
        self.layers, self.normalize = layers, normalize
        call = "DirectFeedbackAlignment"
        inputs = layer_inputs(blocks, self.ends, f"{call}(layers=True)") if layers else {}
        self.feedback = Projections(blocks, scale, shared, call, self.ends, inputs)

    def step(self, batch: Batch) -> Tensor:
        error = Error()
        with self._sending(error):
            outputs = self._forward(batch)  # h_k (or N(h_k)) of the blocks that get the error
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
        """Run all blocks; give the outputs of the blocks `ends`, normalised with `normalize`.

        The graph of each output begins after the previous one.
        """
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
        with without_autocast(h.device):
            return self.feedback(k, e, h.shape)

    @contextlib.contextmanager
    def _sending(self, error: Error) -> Iterator[None]:
        """A context in which layers send the projected error to their input."""
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
    """The error of a step: the gradient of the scaled loss at the network's output.

    It is known only after the forward pass.
    """

    e: Tensor


def _normalized(h: Tensor) -> Tensor:
    """N(h), over the features of (B, D) and (B, T, D), or over all units of (B, C, H, W)."""
    return F.layer_norm(h, h.shape[-1:] if h.dim() <= 3 else h.shape[1:])


def _numbers(blocks: Blocks, at: Sequence[str | int]) -> list[int]:
    """The numbers of blocks that are given by name or number."""
    known = {name: k for k, name in enumerate(blocks.names)}
    known = {str(k): k for k in range(len(blocks))} | known
    for one in at:
        if str(one) not in known:
            raise InputError(
                f"DirectFeedbackAlignment(at): no block {one!r}; {choices(str(one), blocks.names)}"
            )
    return [known[str(one)] for one in at]
