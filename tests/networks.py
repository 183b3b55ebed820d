"""Tiny networks of every kind, as blocks with a batch for them; and every rule by a short name."""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from layerwise import Blocks, LocalRule, Needs, Rule, heads, models, objectives, rules
from layerwise.heads import Head
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.families import targets

CLASSES = 3


@dataclass
class Case:
    """A network as blocks, a batch for it, and whether its feature maps are (C, H, W)."""

    blocks: Blocks
    x: Tensor
    y: Tensor
    maps: bool

    @property
    def model(self) -> nn.Sequential:
        """The same modules as one plain PyTorch network."""
        return nn.Sequential(*self.blocks)


def grouped(network: nn.Sequential, ends: list[int]) -> list[nn.Module]:
    """The chain's modules in groups that end before `ends`."""
    parts = list(network)
    starts = [0, *ends]
    return [nn.Sequential(*parts[a:b]) for a, b in zip(starts, [*ends, None], strict=True)]


def _case(parts: list[nn.Module], shape: tuple[int, ...], maps: bool, dtype: torch.dtype) -> Case:
    x = torch.randn(6, *shape).to(dtype)
    y = torch.randint(0, CLASSES, (6,))
    parts = [part.to(dtype) for part in parts]
    return Case(Blocks(parts, example=x[:2]), x, y, maps)


@st.composite
def chains(draw: st.DrawFn) -> Case:
    """2 to 5 blocks in float64: up to two convolutions of any kind, then linear layers."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    samples, channels = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    h = x = torch.randn(samples, channels, 5, 4, dtype=torch.float64)
    blocks: list[nn.Module] = []

    def block(*layers: nn.Module) -> None:
        nonlocal h
        blocks.append(nn.Sequential(*layers).double())
        h = blocks[-1](h)

    nonlinearities = st.sampled_from([nn.Identity, nn.ReLU, nn.Tanh])
    for _ in range(draw(st.integers(0, 2))):
        channels, kernel = h.shape[1], draw(st.integers(1, 3))
        groups = draw(st.sampled_from([1, channels]))
        layer = nn.Conv2d(
            channels,
            groups * draw(st.integers(1, 2)),
            kernel,
            stride=draw(st.integers(1, 2)),
            padding=kernel // 2,
            groups=groups,
            bias=draw(st.booleans()),
        )
        block(layer, draw(nonlinearities)())
    for width in draw(st.lists(st.integers(1, 5), min_size=1, max_size=2)):
        features = h[0].numel()
        layer = nn.Linear(features, width, bias=draw(st.booleans()))
        block(nn.Flatten(), layer, draw(nonlinearities)())
    block(nn.Linear(h.shape[1], CLASSES))
    return Case(Blocks(blocks, example=x), x, torch.randint(0, CLASSES, (samples,)), False)


def mlp(dtype: torch.dtype = torch.float32, dropout: float = 0.0, blocks: int = 3) -> Case:
    net = models.mlp((1, 2, 3), CLASSES, layers=2, width=5, dropout=dropout)
    return _case(grouped(net, [1, 2][: blocks - 1]), (1, 2, 3), False, dtype)


def mlp_norm(dtype: torch.dtype = torch.float32, dropout: float = 0.0, blocks: int = 3) -> Case:
    net = models.mlp((1, 2, 3), CLASSES, layers=2, width=5, batch_norm=True, dropout=dropout)
    return _case(grouped(net, [1, 2][: blocks - 1]), (1, 2, 3), False, dtype)


def cnn(dtype: torch.dtype = torch.float32, dropout: float = 0.0, blocks: int = 4) -> Case:
    """Convolution, BatchNorm, ReLU, pooling and (with `dropout`) dropped feature maps."""
    net = models.vgg8c((2, 8, 8), CLASSES, width=1 / 64, hidden=512, dropout=dropout)
    return _case(grouped(net, [1, 3, 5][: blocks - 1]), (2, 8, 8), True, dtype)


def resnet(dtype: torch.dtype = torch.float32, dropout: float = 0.0, blocks: int = 3) -> Case:
    """The first residual block of each stage: the shortcut as it is, and twice with new channels
    at half the resolution."""
    net = models.resnet20((2, 8, 8), CLASSES, width=0.25)
    parts = [net[0], net[1], net[4], *([nn.Dropout2d(dropout)] if dropout else []), net[7], net[10]]
    ends = [2, 4 if dropout else 3][: blocks - 1]
    return _case(grouped(nn.Sequential(*parts), ends), (2, 8, 8), True, dtype)


def transformer(dtype: torch.dtype = torch.float32, dropout: float = 0.0, blocks: int = 4) -> Case:
    net = models.vit((2, 4, 4), CLASSES, patch=2, layers=2, width=8, heads=2, dropout=dropout)
    return _case(grouped(net, [1, 2, 3][: blocks - 1]), (2, 4, 4), False, dtype)


def plain_cnn(dtype: torch.dtype = torch.float32, dropout: float = 0.0, blocks: int = 3) -> Case:
    """Without BatchNorm, so that a sample's gradient does not depend on its batch."""
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh()),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2)),
        nn.Sequential(nn.Flatten(), nn.Linear(4 * 4 * 4, CLASSES)),
    )
    return _case(grouped(net, [1, 2][: blocks - 1]), (2, 8, 8), True, dtype)


def noprop_cnn(dtype: torch.dtype = torch.float32, dropout: float = 0.0, blocks: int = 4) -> Case:
    net = models.noprop_cnn((2, 8, 8), CLASSES, steps=3, channels=2, width=6, dropout=dropout)
    return _case(grouped(net, [1, 2, 3][: blocks - 1]), (2, 8, 8), False, dtype)


def diffusion_vit(
    dtype: torch.dtype = torch.float32, dropout: float = 0.0, blocks: int = 3
) -> Case:
    net = models.diffusion_vit((2, 4, 4), CLASSES, layers=1, patch=2, width=8, heads=2)
    return _case(grouped(net, [1, 2][: blocks - 1]), (2, 4, 4), False, dtype)


NETWORKS: dict[str, Callable[..., Case]] = {
    "mlp": mlp,
    "cnn": cnn,
    "resnet": resnet,
    "transformer": transformer,
}
WITHOUT_NORM: dict[str, Callable[..., Case]] = {
    "mlp": mlp,
    "plain_cnn": plain_cnn,
    "transformer": transformer,
}


class MeanSquare(objectives.Objective):
    """mean(h^2): the simplest objective that has no head and no labels."""

    def forward(self, activity: objectives.Activity, batch: object) -> Tensor:
        return activity.output.square().mean()


SMALL_HEAD: Head = heads.MLP(width=7)


class SmallSynthesizer(nn.Module):
    """tanh(h * a + c[y]): without BatchNorm, and not nought at the start."""

    def __init__(self, shape: tuple[int, ...], classes: int | None):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(-1, 1, math.prod(shape)).view(shape))
        self.context = None if classes is None else nn.Embedding(classes, math.prod(shape))

    def forward(self, h: Tensor, y: Tensor | None) -> Tensor:
        out = h * self.scale
        if self.context is not None:
            out = out + self.context(y).view(h.shape)
        return out.tanh()


def waves(h: Tensor) -> Tensor:
    """In the place of noise: the same for the same sample, wherever it stands in a batch."""
    return (37 * h).cos()


def _targets(make: Callable[..., targets.TargetRule], blocks: Blocks) -> Rule:
    """Learning from noise that is no chance, so that a step can be repeated."""
    rule = make(blocks, heads.Inverse(layers=1, width=4), noise=1.0)
    rule.draw, rule.stochastic = waves, False
    return rule


# The ways of making a rule that the contract is checked for, under the rule's name. A rule that is
# not here is made with its defaults (`made`).
WAYS: dict[str, dict[str, Callable[[Blocks], Rule]]] = {
    "AugLocal": {"aug_local": lambda blocks: rules.AugLocal(blocks, depth=2)},
    "Backprop": {
        "backprop": rules.Backprop,
        "backprop_checkpointed": lambda blocks: rules.Backprop(blocks, checkpoint=True),
    },
    "DeepSupervision": {
        "deep_supervision": lambda blocks: rules.DeepSupervision(blocks, 0.5, SMALL_HEAD),
        "deep_supervision_detached": lambda blocks: rules.DeepSupervision(
            blocks, 0.5, SMALL_HEAD, detach=True
        ),
    },
    "DGL": {"dgl": lambda blocks: rules.DGL(blocks, num_classes=CLASSES, head=SMALL_HEAD)},
    "DifferenceTargetPropagation": {
        "difference_target_propagation": lambda blocks: _targets(
            rules.DifferenceTargetPropagation, blocks
        ),
    },
    "DirectDifferenceTargetPropagation": {
        "direct_difference_target_propagation": lambda blocks: _targets(
            rules.DirectDifferenceTargetPropagation, blocks
        ),
    },
    "DirectFeedbackAlignment": {
        "direct_feedback_alignment": rules.DirectFeedbackAlignment,
        "direct_feedback_alignment_shared": lambda blocks: rules.DirectFeedbackAlignment(
            blocks, shared=True
        ),
        "direct_feedback_alignment_at": lambda blocks: rules.DirectFeedbackAlignment(
            blocks, at=(1,)
        ),
        "direct_feedback_alignment_layers": lambda blocks: rules.DirectFeedbackAlignment(
            blocks, layers=True
        ),
        "direct_feedback_alignment_normalize": lambda blocks: rules.DirectFeedbackAlignment(
            blocks, normalize=True
        ),
    },
    "DirectGlobal": {
        "direct_global": lambda blocks: rules.DirectGlobal(blocks, 0.25, head=SMALL_HEAD),
    },
    "DNI": {
        "dni": lambda blocks: rules.DNI(blocks, SmallSynthesizer),
        "cdni": lambda blocks: rules.DNI(blocks, SmallSynthesizer, context=True),
    },
    "EquilibriumPropagation": {
        "equilibrium_propagation": lambda blocks: rules.EquilibriumPropagation(
            blocks, 0.25, 3, 0.3
        ),
    },
    "ForwardForward": {
        "forward_forward": rules.ForwardForward,
        "forward_forward_hard": lambda blocks: rules.ForwardForward(blocks, mean=False, hard=True),
    },
    "Greedy": {
        "greedy": lambda blocks: rules.Greedy(
            blocks, 0.25 * objectives.Classify(heads.Linear()) + 0.75 * MeanSquare()
        ),
    },
    "HPFF": {
        "hpff": lambda blocks: rules.HPFF(
            blocks, objectives.Classify(SMALL_HEAD), 2, independent=0.25, every=2
        ),
    },
    "LDRL": {"ldrl": lambda blocks: _targets(rules.LDRL, blocks)},
    "LocalForwardGradient": {
        "local_forward_gradient": lambda blocks: rules.LocalForwardGradient(
            blocks, objectives.Classify(SMALL_HEAD), directions=2
        ),
        "local_forward_gradient_weights": lambda blocks: rules.LocalForwardGradient(
            blocks, objectives.Classify(SMALL_HEAD), weights=True
        ),
    },
    "MAN": {
        "man": lambda blocks: rules.MAN(blocks, SMALL_HEAD),
        "man_scaled": lambda blocks: rules.MAN(blocks, SMALL_HEAD, scaled=True),
    },
    "PEPITA": {
        "pepita": rules.PEPITA,
        "pepita_recomputed": lambda blocks: rules.PEPITA(blocks, derivative=False, recompute=True),
    },
    "PredictiveCoding": {
        "predictive_coding": lambda blocks: rules.PredictiveCoding(blocks, 4, 0.3),
        "fixed_prediction": lambda blocks: rules.PredictiveCoding(
            blocks, 4, 0.3, fixed_prediction=True
        ),
        "error_based": lambda blocks: rules.PredictiveCoding(blocks, 2, 0.3, error_based=True),
    },
    # Its last phase, in which the network's output is trained; tests/rules has the others.
    "Sequential": {
        "sequential": lambda blocks: rules.Sequential(blocks, [None] * (len(blocks) - 1)),
    },
    "SGR": {"sgr": lambda blocks: rules.SGR(blocks, 0.3, SMALL_HEAD)},
    "SharedReadout": {
        "shared_readout": rules.SharedReadout,
        "last_readout": lambda blocks: rules.SharedReadout(
            blocks, normalize=False, shared_gradient=False
        ),
    },
    "SignSymmetry": {
        "sign_symmetry": rules.SignSymmetry,
        "sign_symmetry_fixed": lambda blocks: rules.SignSymmetry(blocks, random_magnitude=True),
    },
    "SPSA": {
        # Far enough to be seen in 16 bits.
        "spsa": lambda blocks: rules.SPSA(blocks, eps=0.1),
        "spsa_subspace": lambda blocks: rules.SPSA(
            blocks, directions=2, two_sided=False, rademacher=True, rank=3
        ),
        "spsa_normalized": lambda blocks: rules.SPSA(
            blocks, eps=0.1, directions=3, two_sided=False, rademacher=True, normalize=True
        ),
    },
}
# Rules that train one kind of network alone, with it.
OWN_NETWORKS: dict[str, tuple[Callable[..., Case], dict[str, Callable[[Blocks], Rule]]]] = {
    "NoProp": (
        noprop_cnn,
        {"noprop": rules.NoProp, "noprop_learned": lambda b: rules.NoProp(b, learned=True)},
    ),
    "DiffusionBlocks": (diffusion_vit, {"diffusion_blocks": rules.DiffusionBlocks}),
}


def made(rule: type[Rule], blocks: Blocks, criterion: Criterion = cross_entropy) -> Rule:
    """A rule with its defaults, but small heads; where it takes objectives, every block predicts
    the labels."""
    takes = inspect.signature(rule).parameters
    options: dict[str, Any] = {"criterion": criterion}
    if "objectives" in takes:
        options["objectives"] = objectives.Classify(SMALL_HEAD, criterion)
    if "head" in takes:
        options["head"] = SMALL_HEAD
    if "delay" in takes:  # otherwise the first step has no gradients
        options["delay"] = 0
    return rule(blocks, **options)


def _module(rule: type[Rule]) -> str:
    """The name of the file that a rule is in."""
    return rule.__module__.rpartition(".")[2]


# With one block these are not backpropagation: the way back is another, or there is none.
NOT_BACKPROPAGATION = {
    "FeedbackAlignment",
    "ForwardGradient",
    "KolenPollack",
    "SPSA",
    "SignSymmetry",
    *OWN_NETWORKS,
}
# Every rule of layerwise.rules is here by itself.
_NAMED = {name: getattr(rules, name) for name in rules.__all__ if name not in OWN_NETWORKS}
RULES: dict[str, dict[str, Callable[[Blocks], Rule]]] = {
    name: WAYS.get(name, {_module(rule): functools.partial(made, rule)})
    for name, rule in _NAMED.items()
}
ALL_RULES = {name: make for ways in RULES.values() for name, make in ways.items()}
# Rules that do not train every block in a step.
PARTLY = ("last_block", "sequential")
# The ways of making a rule but its first.
FURTHER = {name for ways in RULES.values() for name in list(ways)[1:]}
WHOLE_RULES = {name: make for name, make in ALL_RULES.items() if name not in PARTLY}


def _is_local(rule: Rule) -> bool:
    """Whether every block minimises an objective of its own on its input, and nothing else passes
    from block to block."""
    if not isinstance(rule, LocalRule) or Needs.NEXT in rule.needs or not _as_chain(rule):
        return False
    carries = len(inspect.signature(rule.local_step).parameters) > 3
    return len(rule.objectives) == len(rule.blocks) and not carries


def _as_chain(rule: Rule) -> bool:
    """Whether the rule predicts by its blocks, one after the other."""
    return type(rule).forward is Rule.forward


LOCAL_RULES = {name: make for name, make in WHOLE_RULES.items() if _is_local(make(mlp().blocks))}


def predicted(rule: Rule, case: Case) -> Tensor:
    """What the rule predicts, in its present mode and without a trace of it: by the plain network,
    unless the rule says that it predicts otherwise."""
    if _as_chain(rule):
        return copy.deepcopy(case.model)(case.x)
    with torch.no_grad():
        return copy.deepcopy(rule)(case.x)


def grads(module: nn.Module) -> dict[str, Tensor]:
    """A copy of every gradient there is."""
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def assert_same(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(got[name], tensor), name


def assert_close(
    got: dict[str, Tensor], wanted: dict[str, Tensor], atol: float = 1e-12, rtol: float = 0.0
) -> None:
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(
            got[name], tensor, atol=atol, rtol=rtol, msg=lambda m, n=name: f"{n}: {m}"
        )


def losses_of_training(
    rule: Rule, x: Tensor, y: Tensor, way: str, lr: float = 0.05
) -> list[Tensor]:
    """Every block's loss, (blocks,), in each of 8 steps on one batch: "plain", under autocast to
    "bf16", or "channels_last"."""
    if way == "channels_last":
        rule = rule.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(rule.parameters(), lr=lr, momentum=0.9)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "bf16"):
            report = rule.backward(x, y)
        optimizer.step()
        losses.append(torch.stack(report.local_losses))
    return losses
