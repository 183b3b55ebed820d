"""Recipes of PyTorch's optimizers. Calling one with parameters makes the optimizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from layerwise.arguments import at_least, check_fields, positive, share, shortened
from layerwise.errors import InputError, reason


@dataclass(frozen=True)
class Optimizer(ABC):
    """A recipe of an optimizer. Norms and biases (parameters of one axis) get no weight decay."""

    lr: float

    @abstractmethod
    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimizer of these parameters."""


def _groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict]:
    parameters = [p for p in parameters if p.requires_grad]
    matrices = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum.

    Args:
        lr: largest learning rate of the schedule.
        momentum: decay of the running sum of gradients.
        nesterov: use Nesterov momentum.
        weight_decay: L2 penalty on weights; none on norms and biases.
    """

    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        check_fields(self, "SGD")
        positive("SGD", lr=self.lr)
        share("SGD", momentum=self.momentum)
        at_least(0, "SGD", weight_decay=self.weight_decay)

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        made = torch.optim.SGD(
            _groups(parameters, self.weight_decay),
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov and self.momentum > 0,
            fused=True,
        )
        if self.momentum:
            made.register_step_pre_hook(_begin_late_momenta)
        return made


def _begin_late_momenta(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Begin the momentum of parameters whose first gradient comes later than that of others, as in
    stages that learn late. The fused kernel takes the momenta of all parameters or of none; from
    zero, the first step is the same."""
    state = optimizer.state
    if not state or len(state) == sum(len(group["params"]) for group in optimizer.param_groups):
        return
    for group in optimizer.param_groups:
        trained = [p for p in group["params"] if p.grad is not None]
        late = [p for p in trained if "momentum_buffer" not in state.get(p, ())]
        if len(late) < len(trained):
            for p in late:
                state[p]["momentum_buffer"] = torch.zeros_like(p)


@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay.

    Args:
        lr: largest learning rate of the schedule.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        weight_decay: decoupled decay of weights; none of norms and biases.
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        check_fields(self, "AdamW")
        positive("AdamW", lr=self.lr)
        share("AdamW", beta1=self.beta1, beta2=self.beta2)
        at_least(0, "AdamW", weight_decay=self.weight_decay)

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            _groups(parameters, self.weight_decay),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            fused=True,
        )


@dataclass(frozen=True)
class OfFunction(Optimizer):
    """What a function of the parameters makes: an optimizer of PyTorch or of your own.

    Args:
        lr: the learning rate that the schedule's factors multiply.
        make: the function.
    """

    lr: float
    make: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

    @classmethod
    def of(
        cls,
        make: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        remedy: str = "give a recipe such as trainer.optim.AdamW(lr=1e-3), or a function of the "
        "parameters alone, such as functools.partial(torch.optim.Adam, lr=1e-3)",
    ) -> OfFunction:
        """Find the learning rate by making the optimizer of one small matrix, and stepping it. An
        error ends with the remedy.

        Raises:
            InputError: the function makes no optimizer with a learning rate; its steps need more
                than gradients.
        """
        matrix = nn.Parameter(torch.zeros(2, 2))
        try:
            made = make([matrix])
            lr = float(made.defaults["lr"])
        except Exception as error:  # whatever an optimizer raises for options that it does not take
            raise InputError(f"optimizer {called(make)}: {reason(error)}; {remedy}") from error
        matrix.grad = torch.zeros(2, 2)
        try:
            made.step()
        except Exception as error:
            raise InputError(
                f"optimizer {type(made).__name__}: it cannot step with a gradient alone "
                f"({reason(error)}); give one that does, such as torch.optim.Adam"
            ) from error
        return cls(lr, make)

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimizer of these parameters.

        Raises:
            InputError: it does not take them.
        """
        try:
            return self.make([p for p in parameters if p.requires_grad])
        except ValueError as error:
            raise InputError(
                f"optimizer {called(self.make)}: it does not take the network's parameters: "
                f"{reason(error)}; give another, or a function that gives these to another"
            ) from error


def called(make: Callable[..., Any]) -> str:
    """The name of a function, also of one with options."""
    make = getattr(make, "func", make)
    return getattr(make, "__name__", shortened(make))
