"""The contract's tests once more, for rules that train one kind of network alone.

Their noise is drawn anew in every step; here every step draws the same, so that gradients may be
compared, and puts the generator back.
"""

from __future__ import annotations

from collections.abc import Callable

import networks
import pytest
import torch
from contract import test_contract as contract
from contract import test_features as features
from contract import test_on_block as on_block
from contract import test_views as views
from networks import OWN_NETWORKS, assert_close, assert_same, grads

from layerwise import Batch, Blocks, Done, Report, Rule, rules

WAYS = {
    name: (network, make) for network, ways in OWN_NETWORKS.values() for name, make in ways.items()
}


def same_noise(make: Callable[[Blocks], Rule]) -> Callable[[Blocks], Rule]:
    """The rule, whose every step draws the same noise."""

    def made(blocks: Blocks) -> Rule:
        rule = make(blocks)

        class SameNoise(type(rule)):  # type: ignore[misc]
            def backward(self, *args: object, **options: object) -> Report:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(7)
                    return super().backward(*args, **options)

        rule.__class__ = SameNoise
        return rule

    return made


@pytest.fixture(params=WAYS)
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A rule's, in whose place the tests of other files find it and its network alone."""
    network, make = WAYS[request.param]
    own = {request.param: same_noise(make)}
    for module in (contract, features, on_block, views):
        for table in ("ALL_RULES", "WHOLE_RULES", "LOCAL_RULES"):
            monkeypatch.setattr(module, table, own, raising=False)
        for table in ("NETWORKS", "WITHOUT_NORM"):
            monkeypatch.setattr(module, table, {"own": network}, raising=False)
    monkeypatch.setattr(networks, "plain_cnn", network)
    return request.param


@pytest.mark.parametrize(
    "test",
    [
        contract.test_every_parameter_gets_a_gradient,
        features.test_one_long_autocast_context,
        on_block.test_called_once_per_block_when_its_gradient_is_complete,
    ],
)
def test_of_networks(name: str, test: Callable[..., None]) -> None:
    first = (WAYS[name][0](),) if "case" in test.__annotations__ else ("own",)
    test(*first, name)


@pytest.mark.parametrize(
    "test",
    [
        contract.test_parameters_are_the_networks_and_the_heads,
        contract.test_nothing_is_rebound_stepped_or_left_behind,
        contract.test_report_is_detached_and_right,
        contract.test_prediction_is_the_models,
    ],
)
def test_of_a_case(name: str, test: Callable[..., None]) -> None:
    network, make = WAYS[name]
    test(network(), same_noise(make))


@pytest.mark.parametrize(
    "test", [contract.test_report_survives_the_next_step, contract.test_state_dict_carries_the_rule]
)
def test_of_a_rule(name: str, test: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    network, make = WAYS[name]
    monkeypatch.setattr(networks, "cnn", network)
    test(same_noise(make))


def test_of_small_networks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, make = WAYS[name]
    monkeypatch.setattr(networks, "mlp", network)
    contract.gradients_accumulate(0.0, make)
    contract.test_gradients_are_refused_where_they_are_off(same_noise(make))
    contract.test_a_copy_of_a_rule_is_independent(same_noise(make))
    features.test_evaluation_before_training_in_one_autocast_context(name)
    features.test_clipping_per_block_and_whole(name)
    features.test_everything_frozen_is_a_report_and_no_gradient(name)
    features.test_input_that_requires_grad_is_left_alone_by_local_rules(name)
    views.test_a_rule_that_compares_nothing_refuses_views(name)


def test_exits(name: str) -> None:
    contract.test_exits_are_the_local_logits("own", same_noise(WAYS[name][1]))


def test_frozen_parts(name: str) -> None:
    wanted = features.unfrozen("own", name)
    features.frozen_weight("own", name, wanted)
    if "learned" not in name:  # vectors learn with every block's loss, frozen or not
        features.frozen_block_with_its_head("own", name, wanted)


@pytest.mark.parametrize("optimizer", on_block.OPTIMIZERS)
def test_stepping_per_block(name: str, optimizer: str) -> None:
    on_block.test_stepping_per_block_is_stepping_once("own", name, optimizer)


def test_channels_last(name: str) -> None:
    if name != "diffusion_blocks":
        features.test_channels_last("own", name)


def test_later_blocks_do_not_reach_earlier_ones(name: str) -> None:
    """Nor earlier ones later: a denoiser learns from the image and the label alone."""
    network, make = WAYS[name]
    case = network()
    rule = same_noise(make)(case.blocks)
    rule.backward(case.x, case.y)
    before = grads(rule.blocks[1])
    rule.zero_grad()
    with torch.no_grad():
        for k in (0, 2):
            for p in rule.blocks[k].parameters():
                p.add_(torch.randn_like(p))
    rule.backward(case.x, case.y)
    assert_same(grads(rule.blocks[1]), before)


def test_scale_and_graphs(name: str) -> None:
    """A scale is a factor of every gradient, exactly where it is a power of two; and when a block
    is done its graph is gone."""
    network, make = WAYS[name]
    case = network()
    rule = same_noise(make)(case.blocks)
    rule.backward(case.x, case.y)
    wanted = {n: g * 2**16 for n, g in grads(rule).items()}
    rule.zero_grad()
    alive: set[int] = set()
    counts: list[int] = []

    class Held:
        def __init__(self, tensor: torch.Tensor):
            self.tensor = tensor.detach()
            alive.add(id(self))

        def __del__(self) -> None:
            alive.discard(id(self))

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        rule.backward(
            case.x,
            case.y,
            scale=lambda loss: loss * 2**16,
            on_block=lambda i: counts.append(len(alive)),
        )
    assert counts == [0] * len(case.blocks)
    assert_close(grads(rule), wanted, atol=0.0, rtol=1e-6)


def test_eval_mode_trains_without_statistics(name: str) -> None:
    network, make = WAYS[name]
    case = network()
    rule = same_noise(make)(case.blocks).eval()
    buffers = {n: b.clone() for n, b in rule.named_buffers()}
    report = rule.backward(case.x, case.y)
    assert_same(dict(rule.named_buffers()), buffers)
    assert torch.equal(report.logits, case.model(case.x))


def test_local_step_alone_is_the_step(name: str) -> None:
    network, make = WAYS[name]
    case = network()
    rule = make(case.blocks)
    assert isinstance(rule, rules.NoProp | rules.DiffusionBlocks)
    torch.manual_seed(7)
    rule.backward(case.x, case.y)
    wanted = grads(rule)
    rule.zero_grad()
    torch.manual_seed(7)
    batch, done = Batch(case.x, case.y), Done(case.x)
    for k in range(len(rule.blocks)):
        done = rule.local_step(k, done.out, batch, *done.carry)
        assert not done.out.requires_grad
    assert_same(grads(rule), wanted)
