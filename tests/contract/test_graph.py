"""What a local rule saves: no gradient of a block's input, and one block's graph at a time."""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import networks
import pytest
import torch
from networks import ALL_RULES, LOCAL_RULES, NETWORKS
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from layerwise import Blocks, Rule, heads, rules

# Rules that take no derivative backwards.
WITHOUT_GRAPH = (
    "forward_gradient",
    "local_forward_gradient_weights",
    "spsa",
    "spsa_subspace",
)
WITH_GRAPHS = [name for name in LOCAL_RULES if name not in WITHOUT_GRAPH]


class Backwards(TorchDispatchMode):
    """Which convolutions' input gradients are computed, and how many matrix products there are."""

    def __init__(self) -> None:
        super().__init__()
        self.input_gradient: dict[int, bool] = {}  # weight's address -> output_mask[0]
        self.mm = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.input_gradient[args[2].data_ptr()] = args[-1][0]
        if func is torch.ops.aten.mm.default:
            self.mm += 1
        return func(*args, **(kwargs or {}))


def _convs(module: nn.Module) -> list[nn.Conv2d]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


def _mask(rule: Rule, case: networks.Case) -> list[list[bool]]:
    with Backwards() as seen:
        rule.backward(case.x, case.y)
    return [
        [seen.input_gradient[conv.weight.data_ptr()] for conv in _convs(block)]
        for block in rule.blocks
    ]


@pytest.mark.parametrize("network", ["cnn", "resnet"])
@pytest.mark.parametrize(
    "name",
    [
        *WITH_GRAPHS,
        "direct_feedback_alignment",
        "direct_random_target_projection",
        "forward_forward",
    ],
)
def test_no_gradient_of_a_blocks_input(network: str, name: str) -> None:
    case = NETWORKS[network]()
    masks = _mask(ALL_RULES[name](case.blocks), case)
    assert sum(map(len, masks)) == len(_convs(case.model))
    for of_block in masks:
        if of_block:
            assert of_block == [False] + [True] * (len(of_block) - 1)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_backprop_computes_all_but_the_first(checkpoint: bool) -> None:
    case = networks.resnet()
    masks = _mask(rules.Backprop(case.blocks, checkpoint=checkpoint), case)
    flat = [m for of_block in masks for m in of_block]
    assert flat == [False] + [True] * (len(flat) - 1)


def test_matrix_products_of_linear_layers() -> None:
    """A linear layer's backward is one product for its weight and one for its input.

    Four blocks of one layer. Backprop: 4 weights, 3 inputs. DGL with linear heads: 4 weights and no
    inputs in the blocks, 3 weights and 3 inputs in the heads. The forward is addmm, not mm.
    """
    parts = [nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 6), nn.Linear(6, 3)]
    x, y = torch.randn(8, 6), torch.randint(0, 3, (8,))
    blocks = Blocks(parts, example=x)
    counts = []
    for rule in (rules.Backprop(blocks), rules.DGL(blocks, head=heads.Linear())):
        with Backwards() as seen:
            rule.backward(x, y)
        counts.append(seen.mm)
    assert counts == [4 + 3, 4 + 3 + 3]


class _Held:
    """Stands in for a tensor that autograd saved, so that its life can be watched."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor


def _kept_for_backward(rule: Rule, case: networks.Case) -> int:
    """How many tensors autograd saves in a step."""
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(0) or t, lambda t: t):
        rule.backward(case.x, case.y)
    return len(saved)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", WITHOUT_GRAPH)
def test_nothing_is_kept_for_a_backward_pass(network: str, name: str) -> None:
    case = NETWORKS[network](dropout=0.2)
    with Backwards() as seen:
        assert _kept_for_backward(ALL_RULES[name](case.blocks), case) == 0
    assert not any(seen.input_gradient.values())
    assert _kept_for_backward(rules.Backprop(case.blocks), case) > 0


def _alive_at_each_block(rule: Rule, case: networks.Case) -> list[int]:
    """How many saved tensors are alive when each block starts, and after the last."""
    alive: weakref.WeakSet[_Held] = weakref.WeakSet()
    counts: list[int] = []
    most = 0

    def pack(t: Tensor) -> _Held:
        nonlocal most
        held = _Held(t)
        alive.add(held)
        most = max(most, len(alive))
        return held

    handles = [
        block.register_forward_pre_hook(lambda *_: counts.append(len(alive)))
        for block in rule.blocks
    ]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        rule.backward(case.x, case.y)
    for handle in handles:
        handle.remove()
    assert most > 0
    return [*counts, len(alive)]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    "name", [*WITH_GRAPHS, "sgr", "direct_random_target_projection", "forward_forward"]
)
def test_a_blocks_graph_is_gone_before_the_next_runs(network: str, name: str) -> None:
    case = NETWORKS[network](dropout=0.2)
    counts = _alive_at_each_block(ALL_RULES[name](case.blocks), case)
    assert len(counts) > len(case.blocks)
    assert set(counts) == {0}


def test_backprop_keeps_every_graph() -> None:
    """The test above can fail."""
    case = networks.mlp()
    counts = _alive_at_each_block(rules.Backprop(case.blocks), case)
    assert counts[0] == counts[-1] == 0
    assert all(a < b for a, b in itertools.pairwise(counts[:-1]))


@pytest.mark.parametrize("name", WITH_GRAPHS)
def test_a_frozen_blocks_graph_is_gone_too(name: str) -> None:
    """A frozen block under a trainable head, and one where nothing is trained."""
    case = networks.cnn()
    rule = LOCAL_RULES[name](case.blocks)
    rule.blocks[0].requires_grad_(False)
    for p in rule.parameters_of(1):
        p.requires_grad_(False)
    assert _alive_at_each_block(rule, case) == [0] * (len(case.blocks) + 1)


@pytest.mark.parametrize("name", LOCAL_RULES)
def test_a_blocks_output_dies_when_the_next_has_it_no_more(name: str) -> None:
    """When block i starts, only its own input is left of what the blocks before it gave."""
    case = networks.plain_cnn()
    rule = LOCAL_RULES[name](case.blocks)
    outputs: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    handles = []
    for block in rule.blocks:
        handles.append(
            block.register_forward_pre_hook(
                lambda *_: alive.append(sum(ref() is not None for ref in outputs))
            )
        )
        handles.append(
            block.register_forward_hook(lambda m, a, out: outputs.append(weakref.ref(out)))
        )
    rule.backward(case.x, case.y)
    for handle in handles:
        handle.remove()
    assert alive == [0, 0, 0]  # the next block holds a detached tensor, not the output itself
