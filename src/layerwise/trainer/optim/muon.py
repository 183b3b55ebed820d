"""Muon for matrices or filters, together with another optimizer for all other weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layerwise.arguments import at_least, check_fields, positive, share
from layerwise.errors import InputError
from layerwise.trainer.optim.optimizers import AdamW, Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration; they favour small values
STEPS = 3


@dataclass(frozen=True)
class Muon(Optimizer):
    """Muon for weights that are matrices, AdamW for all others (needs PyTorch 2.9).

    Muon steps along the nearest orthogonal matrix to the momentum (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon), scaled to the size of AdamW's steps (Liu et al.
    2025, arXiv:2502.16982), so that both learn at one rate. Deviations: the shape alone decides, so
    that embeddings and output layers are among the matrices, and filters of convolutions are not.

    Args:
        lr: largest learning rate of the schedule.
        momentum: of Muon, which is Nesterov's.
        beta1: decay of AdamW's first moment.
        beta2: decay of AdamW's second moment.
        weight_decay: decoupled decay of weights; none of norms and biases.
    """

    lr: float = 1e-3
    momentum: float = 0.95
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self, "Muon")
        positive("Muon", lr=self.lr)
        share("Muon", momentum=self.momentum, beta1=self.beta1, beta2=self.beta2)
        at_least(0, "Muon", weight_decay=self.weight_decay)
        if not hasattr(torch.optim, "Muon"):
            raise InputError(f"Muon: PyTorch {torch.__version__} has none; install 2.9 or later")

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        parameters = [p for p in parameters if p.requires_grad]
        matrices = [p for p in parameters if p.ndim == 2]
        others = [p for p in parameters if p.ndim != 2]
        made: list[torch.optim.Optimizer] = []
        if matrices:
            made.append(
                torch.optim.Muon(
                    matrices,
                    lr=self.lr,
                    momentum=self.momentum,
                    weight_decay=self.weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        if others:
            made.append(AdamW(self.lr, self.beta1, self.beta2, self.weight_decay)(others))
        return made[0] if len(made) == 1 else Together(made, self.lr)


class Together(torch.optim.Optimizer):
    """Several optimizers, each of other parameters, as one.

    Args:
        parts: the optimizers.
        lr: the learning rate of which that of each group is a multiple.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer], lr: float):
        groups = [{**group, "part": n} for n, o in enumerate(parts) for group in o.param_groups]
        super().__init__(groups, {"lr": lr})
        self.parts = parts

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for n, part in enumerate(self.parts):
            part.param_groups = [group for group in self.param_groups if group["part"] == n]
            part.state = self.state
            part.step()


def orthogonalized(gradient: Tensor) -> Tensor:
    """About U V^T of the singular value decomposition U S V^T: its singular values lie around 1.

    Three steps of a Newton-Schulz iteration in bfloat16 (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon).

    Args:
        gradient: (rows, columns).
    """
    a, b, c = COEFFICIENTS
    tall = gradient.shape[0] > gradient.shape[1]
    x = (gradient.T if tall else gradient).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(STEPS):
        product = x @ x.T
        x = a * x + (b * product + c * product @ product) @ x
    return (x.T if tall else x).to(gradient)


class FilterMuon(torch.optim.Optimizer):
    """Muon on filters (out, in, k, k) as matrices (out, in k k), of constant norm.

        m = momentum m + g;  w = w sqrt(out) / |w| - lr orthogonalized(g + momentum m)

    Args:
        filters: the weights of convolutions.
        lr: learning rate.
        momentum: decay of the running sum m of gradients g.
    """

    def __init__(self, filters: Iterable[nn.Parameter], lr: float, momentum: float):
        super().__init__(filters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is None:
                    continue
                state = self.state[w]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(w)
                m = state["momentum_buffer"].mul_(group["momentum"]).add_(w.grad)
                ahead = w.grad.add(m, alpha=group["momentum"])
                w.mul_(len(w) ** 0.5 / w.norm())
                w.sub_(group["lr"] * orthogonalized(ahead.flatten(1)).view_as(w))


@dataclass(frozen=True)
class ConvMuon(Optimizer):
    """Muon for the filters of convolutions, SGD for matrices and vectors; the optimizer of
    cifar10-airbench (Jordan 2024, arXiv:2404.00498, the variant for Muon).

    Its defaults are the published ones for the network `airbench` and batches of 2,000, converted
    from the sum over a batch to its mean, and from a last layer that divides by its 256 inputs to
    one that does not. Deviation: the whitening's bias learns throughout, not for three epochs.

    Args:
        lr: of Muon, the largest of the schedule; the two others keep their ratio to it.
        momentum: of Muon.
        lr_matrices: of matrices, such as linear layers.
        lr_vectors: of vectors: biases, and scales of norms.
        momentum_others: of SGD, which is Nesterov's.
        weight_decay: of matrices and vectors: what a step at the largest learning rate takes of
            them, a share.
    """

    lr: float = 0.24
    momentum: float = 0.6
    lr_matrices: float = 0.67 * 2000 / 256**2
    lr_vectors: float = 0.053 * 2000
    momentum_others: float = 0.85
    weight_decay: float = 0.004

    def __post_init__(self) -> None:
        check_fields(self, "ConvMuon")
        rates = {"lr_matrices": self.lr_matrices, "lr_vectors": self.lr_vectors}
        positive("ConvMuon", lr=self.lr, **rates)
        share("ConvMuon", momentum=self.momentum, momentum_others=self.momentum_others)
        at_least(0, "ConvMuon", weight_decay=self.weight_decay)

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        parameters = [p for p in parameters if p.requires_grad]
        filters = [p for p in parameters if p.ndim > 2]
        matrices = [p for p in parameters if p.ndim == 2]
        vectors = [p for p in parameters if p.ndim < 2]
        parts: list[torch.optim.Optimizer] = []
        if filters:
            parts.append(FilterMuon(filters, self.lr, self.momentum))
        groups = [
            {"params": group, "lr": lr, "weight_decay": self.weight_decay / lr}
            for group, lr in ((matrices, self.lr_matrices), (vectors, self.lr_vectors))
            if group
        ]
        if groups:
            momentum = self.momentum_others
            parts.append(torch.optim.SGD(groups, momentum=momentum, nesterov=momentum > 0))
        return Together(parts, self.lr)
