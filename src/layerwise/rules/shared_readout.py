"""Greedy learning in which every block predicts through the network's own classifier."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.heads.head import chain, feature_vector
from layerwise.inputs import Inputs, applied, detached
from layerwise.objectives import Activity, Objective, Site
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import Needs, Rule, differentiate
from layerwise.rules.base.checks import checked


class SharedReadout(Rule):
    """Greedy learning in which all blocks share one readout: the network's last linear layer.

    With (W, b) the weights of the readout, n a normalisation of the features, CE the cross entropy,
    and K the last block; sg[] stops the gradient:

        z_k = W n(h_k) + b,   h_k = f_k(sg[h_{k-1}]),   k < K;     z_K the network's own output
        grad_k = d CE(z_k, y) / d f_k,   grad_(W, b) = sum over k of d CE(z_k, y) / d (W, b)

    After SOLO (arXiv:2609.35440), which trains language models in this way: the readout is the
    unembedding, and blocks need no heads. n is a layer normalisation over the features, without
    parameters. If a block has another number of features than the readout, a linear map of its own
    comes before the readout. If a sample has one label, features are averaged over tokens or
    positions. With one block it is backpropagation.

    No signal passes from block to block. But every block needs the current weights of the readout
    and adds to their gradient, so blocks cannot train in several processes.

    Args:
        blocks: the network's blocks, made with an example input. The last `nn.Linear` in the last
            block gives the class scores.
        normalize: whether features are normalised before the readout.
        shared_gradient: whether the readout learns from the losses of all blocks. Otherwise it
            learns only from the last block's loss, and the other blocks use its weights as
            constants.
        criterion: the loss function of every block: takes class scores and labels, returns a
            scalar.

    Raises:
        InputError: `blocks` is not a `Blocks`; `blocks` was made without an example; the last block
            has no linear layer that gives the class scores.
    """

    needs = Needs.FORWARD | Needs.READOUT

    @checks_arguments
    def __init__(
        self,
        blocks: Blocks,
        normalize: bool = True,
        shared_gradient: bool = True,
        criterion: Criterion = cross_entropy,
    ):
        readout = _classifier(checked("SharedReadout", blocks))
        reads = [_Read(readout, normalize, criterion) for _ in range(len(blocks) - 1)]
        super().__init__(blocks, reads, criterion)
        self._readout, self._reads = (
            (readout,),
            reads,
        )  # not registered, because they are parts of others
        self.shared_gradient, self.criterion = shared_gradient, criterion

    def step(self, batch: Batch) -> Tensor:
        last = len(self.blocks) - 1
        weights = [p for p in self._readout[0].parameters() if p.requires_grad]
        # The readout's gradient from the blocks before the last is summed in these copies, so that
        # it reaches `.grad` in one piece.
        copies: dict[Tensor, Tensor] = {
            p: p.detach().requires_grad_(self.shared_gradient) for p in weights
        }
        h = batch.inputs
        for k in range(last):
            h = batch.run(k, detached(h))
            version = h._version
            z = self._reads[k].scores(h, copies, batch.inputs)
            self._refuse_changed(k, h, version)
            loss = self.criterion(z, batch.labels)
            differentiate(loss, batch.scale)
            batch.done(k, loss, z)
        h = batch.run(last, detached(h))
        loss, scores = self.loss(last, Activity(h), batch)
        sums = [(p, copy.grad) for p, copy in copies.items() if copy.grad is not None]
        differentiate(loss, batch.scale, also=sums)
        batch.done(last, loss, scores)
        return h


class _Read(Objective):
    """Predict the labels through the readout, which belongs to another block."""

    def __init__(self, readout: nn.Linear, normalize: bool, criterion: Criterion):
        super().__init__()
        self.readout = (readout,)  # not registered
        self.normalize, self.criterion = normalize, criterion

    def build(self, site: Site) -> None:
        wanted = self.readout[0].in_features
        shape = site.shape[::-1] if site.channels_first else site.shape
        layers, features = feature_vector(shape, site.output_shape, 1, "SharedReadout")
        if features != wanted:
            layers.append(nn.Linear(features, wanted))
        self.features = chain(layers)
        self.channels_first = site.channels_first

    def scores(self, h: Tensor, weights: Mapping[Tensor, Tensor], inputs: Inputs = None) -> Tensor:
        """The class scores; `weights` replace the readout's, which are otherwise constants."""
        v = applied(self.features, h.transpose(1, 2) if self.channels_first else h, inputs)
        if self.normalize:
            v = F.layer_norm(v, v.shape[-1:])
        weight, bias = self.readout[0].weight, self.readout[0].bias
        if bias is not None:
            bias = weights.get(bias, bias.detach())
        return F.linear(v, weights.get(weight, weight.detach()), bias)

    def predict(self, h: Tensor, inputs: Inputs = None) -> Tensor:
        return self.scores(h, {}, inputs)

    def forward(self, activity: Activity, batch: Batch) -> Tensor:
        return self.criterion(self.predict(activity.output, batch.inputs), batch.labels)


def _classifier(blocks: Blocks) -> nn.Linear:
    linear = [m for m in blocks[len(blocks) - 1].modules() if isinstance(m, nn.Linear)]
    # One number for each sample, (B,), is not the output of a linear layer.
    classes = (*blocks.shapes[-1][-1:], 0)[0] if blocks.shapes is not None else None
    if not linear or classes not in (None, linear[-1].out_features):
        raise InputError(
            "SharedReadout(blocks): the last block has no nn.Linear that gives the class scores; "
            "cut so that the network's classifier is in it, or take rules.DGL"
        )
    return linear[-1]
