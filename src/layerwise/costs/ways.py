"""The ways to make one training step, by which time is exchanged for memory."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from layerwise.blocks import Blocks, cut
from layerwise.costs.measure import Contender, When
from layerwise.inputs import Inputs
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules import Backprop
from layerwise.rules.base import Rule

MakeRule = Callable[[Blocks], Rule]
BACKPROP, LOCAL = "backpropagation", "local rules"  # families
TURNS = 4  # groups of blocks that have optimizer state in turn


@dataclass(frozen=True)
class Way:
    """A way to make a step of backpropagation or of a rule; the parts combine.

    Attributes:
        family: `BACKPROP` or `LOCAL`.
        checkpoint: as in `Backprop`.
        budget: the share of activations that torch's partitioner may keep
            (`torch._functorch.config.activation_memory_budget`); None without compiling.
        when: as in `Contender`.
        micro: number of micro-batches over which gradients accumulate.
        turns: as in `Contender`.
    """

    family: str = BACKPROP
    checkpoint: bool | Literal["selective"] = False
    budget: float | None = None
    when: When = "end"
    micro: int = 1
    turns: int = 1

    def name(self, rule: str, pieces: int) -> str:
        """Its name in tables.

        Args:
            rule: name of the rule.
            pieces: number of blocks or of segments.
        """
        local = self.family == LOCAL
        parts = [f"{rule}, {pieces} blocks"] if local else []
        if self.checkpoint:
            kind = "selective checkpointing" if self.checkpoint == "selective" else "checkpointing"
            parts.append(f"{kind}, {pieces} segments")
        if self.budget is not None:
            parts.append(f"memory budget {self.budget:g}")
        if not parts:
            parts.append("backprop")
        if self.micro > 1:
            parts.append(f"{self.micro} micro-batches")
        if self.turns > 1:
            parts.append(f"state of 1/{self.turns}")
        elif not local and self.when == "early":
            parts.append("step in backward")
        elif local and self.when == "end":
            parts.append("one step at the end")
        return ", ".join(parts)

    def contender(
        self,
        network: nn.Module,
        rule: MakeRule,
        x: Inputs,
        y: Tensor,
        *,
        blocks: Any,
        segments: Any,
        balance: Any,
        seed: int,
        memory_format: torch.memory_format = torch.preserve_format,
        criterion: Criterion = cross_entropy,
    ) -> Contender:
        """A copy of the network that is trained in this way; arguments as in `compare_steps`."""
        torch.manual_seed(seed)
        copied = copy.deepcopy(network)
        if self.budget is not None:
            copied.compile(backend="aot_eager_decomp_partition")  # needs no C++ compiler
            made: Rule = Backprop(Blocks([copied]), criterion=criterion)
        else:
            pieces = segments if self.checkpoint else blocks
            chain = cut(copied, blocks=pieces, example=x, balance=balance)
            local = self.family == LOCAL
            end_to_end = partial(Backprop, criterion=criterion, checkpoint=self.checkpoint)
            made = rule(chain) if local else end_to_end(chain)
        made = made.train().to(memory_format=memory_format)
        around = contextlib.nullcontext
        if self.budget is not None:
            around = partial(_budget, self.budget)
        if self.budget is not None or self.checkpoint:  # the first step compiles, or tries blocks
            with around():
                made.backward(x, y)
            made.zero_grad()
        name = self.name(type(made).__name__, len(made.blocks))
        return Contender(name, made, self.when, self.family, self.micro, self.turns, around)


def rivals(micro_batches: Sequence[int], rows: int) -> list[Way]:
    """Backpropagation, and everything that saves memory in it or in a local rule.

    Args:
        micro_batches: numbers of micro-batches; those above `rows` are left out.
        rows: samples of the batch.
    """
    counts = [n for n in micro_batches if 1 < n <= rows]
    few = counts[:1] or [1]
    ways = [
        Way(),
        *(Way(micro=n) for n in counts),
        Way(checkpoint=True),
        Way(checkpoint="selective"),
        Way(budget=0.1),
        Way(when="early"),
        Way(checkpoint=True, when="early"),
        *(Way(checkpoint=True, micro=n) for n in counts),
        Way(turns=TURNS),
        *(Way(checkpoint=True, micro=n, turns=TURNS) for n in few),
        Way(LOCAL, when="early"),
        Way(LOCAL, when="end"),
        *(Way(LOCAL, when="early", micro=n) for n in counts),
        *(Way(LOCAL, micro=n, turns=TURNS) for n in few),
    ]
    return list(dict.fromkeys(ways))


@contextlib.contextmanager
def _budget(share: float) -> Iterator[None]:
    """Within, torch's partitioner keeps this share of the activations for the backward pass."""
    from torch._functorch import config

    with config.patch(activation_memory_budget=share), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hooks that this package keeps on all modules
        yield
