"""A step of Forward-Forward next to fflib's and backpropagation's: an MLP on inputs of MNIST's
shape.

    pip install --no-deps fflib==0.3.0 tqdm
    python benchmarks/forward_forward.py    writes results/step-mlp-forward-forward.json

fflib trains only the hidden layers, from the same positive and negative inputs. `ForwardForward`
also runs the neutral inputs, from which its classifier learns; fflib has no such part.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import torch
from fflib.nn.ff_linear import FFLinear
from fflib.nn.ff_net import FFNet
from fflib.utils.data.mnist import FFMNIST, NegativeGenerator
from in_turns import write
from torch import Tensor, nn

from layerwise import models, rules
from layerwise.blocks import Blocks
from layerwise.costs import Contender, measure
from layerwise.costs.step_table import Measured
from layerwise.inputs import leading
from layerwise.objectives.batch import Batch
from layerwise.rules.base import Needs, Rule

SHAPE, CLASSES, WIDTH, LAYERS, BATCH, ROUNDS = (1, 28, 28), 10, 500, 3, 256, 40
fused_adam = functools.partial(torch.optim.Adam, fused=True)


class FFLib(Rule):
    """A training step as fflib's `FFSuite` takes it: each layer steps its own Adam."""

    needs = Needs.FORWARD

    def __init__(self, optimizer: Callable[..., torch.optim.Optimizer]):
        super().__init__(Blocks([nn.Flatten()]))
        widths = [784 + CLASSES, *[WIDTH] * LAYERS]
        self.net = FFNet(
            [
                FFLinear(a, b, loss_threshold=1.0, lr=1e-3, optimizer=optimizer)
                for a, b in itertools.pairwise(widths)
            ],
            device=None,
        )
        self.data = SimpleNamespace(negative_generator=NegativeGenerator.RANDOM)

    def step(self, batch: Batch) -> Tensor:
        x, y = leading(batch.inputs).flatten(1), batch.labels
        positive = FFMNIST.combine_to_input(self.data, x, FFMNIST.encode_output(self.data, y))
        x, wrong = FFMNIST.generate_negative(self.data, x, y, self.net)
        self.net.run_train_combined(positive, FFMNIST.combine_to_input(self.data, x, wrong))
        self.net.zero_grad()  # the layers have stepped already
        batch.done(0)
        return x


def counted(measured: Measured, rule: Rule) -> Measured:
    """The measurement with the state of fflib's own optimizers added, which is always alive."""
    if not isinstance(rule, FFLib):
        return measured
    state = sum(
        tensor.nbytes
        for layer in rule.net.layers
        for of_parameter in layer.opt.state.values()
        for tensor in of_parameter.values()
    )
    peak = replace(measured.peak, bytes=measured.peak.bytes + state, optimizer=state)
    return replace(measured, peak=peak, at_rest_bytes=state)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = torch.rand(BATCH, *SHAPE), torch.randint(CLASSES, (BATCH,))

    def blocks() -> Blocks:
        return Blocks(models.mlp(SHAPE, CLASSES, layers=LAYERS, width=WIDTH), example=x)

    contenders = [
        Contender("Backprop", rules.Backprop(blocks())),
        Contender("ForwardForward", rules.ForwardForward(blocks()), "early"),
        Contender("fflib", FFLib(torch.optim.Adam)),
        Contender("fflib, fused Adam", FFLib(fused_adam)),
    ]
    measured = measure(contenders, x, y, lambda p: fused_adam(p, lr=1e-3), rounds=ROUNDS, warmup=3)
    title = f"MLP 784-{'-'.join([str(WIDTH)] * LAYERS)}-{CLASSES}"
    rows = map(counted, measured, (contender.rule for contender in contenders))
    write("step-mlp-forward-forward", title, x, tuple(rows), "Adam(lr=0.001, fused=True)")


if __name__ == "__main__":
    main()
