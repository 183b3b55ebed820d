"""Training steps next to those of biotorch, the package with most of these rules: the same network,
batch and optimizer, measured in turns.

python benchmarks/peers.py              writes results/peers-*.json
python benchmarks/peers.py vgg8b        only this one

biotorch is no dependency: `pip install --no-deps biotorch==0.0.16`. It replaces layers and does not
accept padding="same", so the convolutions of all contenders have their padding as a number. Its
direct feedback alignment sends the error to every layer; this library's sends it to every block,
which is one layer in the MLP and in VGG8b, and a residual block in ResNet-20. One thread, as in
step.py; every step ends with one optimizer step for all parameters.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.metadata
import io
import sys
import warnings
from collections.abc import Callable

import torch
from in_turns import SGD, sgd, write
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise import cut, models, rules
from layerwise.blocks import Blocks
from layerwise.costs import Contender, measure
from layerwise.inputs import leading
from layerwise.objectives.batch import Batch
from layerwise.rules.base import Needs, Rule, differentiate

try:
    from biotorch.module.biomodule import BioModule
except ImportError:
    sys.exit("biotorch is not installed: pip install --no-deps biotorch==0.0.16")

Make = Callable[[Blocks], Rule]
# biotorch's name of a rule -> the rule here.
RULES: dict[str, Make] = {
    "fa": rules.FeedbackAlignment,
    "usf": rules.SignSymmetry,
    "brsf": functools.partial(rules.SignSymmetry, random_magnitude=True, redraw=True),
    "frsf": functools.partial(rules.SignSymmetry, random_magnitude=True),
    "dfa": rules.DirectFeedbackAlignment,
}
NETWORKS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "vgg8b": (models.vgg8b, (16, 3, 32, 32)),
    "resnet20": (models.resnet20, (64, 3, 32, 32)),
    "mlp": (lambda: models.mlp((3, 32, 32), 10, layers=8, width=512), (128, 3, 32, 32)),
}


class BioTorch(Rule):
    """The network as biotorch converts it, in one block."""

    needs = Needs.BACKWARD

    def __init__(self, network: nn.Module, mode: str):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it converts
            converted = BioModule(copy.deepcopy(network), mode=mode, output_dim=10)
        super().__init__(Blocks([converted]))
        self.mode = mode

    def step(self, batch: Batch) -> Tensor:
        x, y = leading(batch.inputs), batch.labels
        network = self.blocks[0]
        logits = network(x, y, F.cross_entropy) if self.mode == "dfa" else network(x)
        loss = F.cross_entropy(logits, y)
        differentiate(loss, batch.scale)
        batch.done(0, loss)
        return logits


def contenders(network: nn.Sequential, x: Tensor) -> list[Contender]:
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.padding == "same":
            module.padding = tuple(k // 2 for k in module.kernel_size)

    def chain() -> Blocks:
        return cut(copy.deepcopy(network), blocks="all", example=x)

    found = [Contender("backprop", rules.Backprop(chain()))]
    for mode, make in RULES.items():
        found.append(Contender(mode, make(chain())))
        found.append(Contender(f"biotorch {mode}", BioTorch(network, mode)))
    return found


def main(names: list[str]) -> None:
    if unknown := set(names) - set(NETWORKS):
        sys.exit(f"no such network: {', '.join(unknown)}; there is {', '.join(NETWORKS)}")
    warnings.filterwarnings("ignore", "Using a non-full backward hook")  # biotorch's
    torch.set_num_threads(1)
    for name in names or NETWORKS:
        make, shape = NETWORKS[name]
        torch.manual_seed(0)
        x, y = torch.randn(shape), torch.randint(10, shape[:1])
        rounds = 9 if name != "vgg8b" else 5
        measured = measure(contenders(make(), x), x, y, sgd, rounds=rounds)
        version = importlib.metadata.version("biotorch")
        write(f"peers-{name}", name, x, measured, SGD, biotorch=version)


if __name__ == "__main__":
    main(sys.argv[1:])
