"""What every rule promises, for every kind of network."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable

import networks
import pytest
import torch
from networks import (
    ALL_RULES,
    LOCAL_RULES,
    NETWORKS,
    WHOLE_RULES,
    WITHOUT_NORM,
    assert_same,
    grads,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as nn_module
from torch.nn.modules.dropout import _DropoutNd

from layerwise import Blocks, InputError, Rule, objectives, rules
from layerwise.rules.families.denoising import DenoisingRule
from layerwise.rules.families.feedback import FeedbackRule

Make = Callable[[Blocks], Rule]


def test_every_rule_is_here() -> None:
    """Rules join the contract by themselves; what the tables say of some is of rules that exist."""
    assert set(networks.RULES) | set(networks.OWN_NETWORKS) == set(rules.__all__)
    assert set(networks.WAYS) <= set(networks.RULES)
    for name, ways in networks.RULES.items():
        for make in ways.values():
            assert type(make(networks.mlp().blocks)) is getattr(rules, name)


@pytest.mark.parametrize("name", rules.__all__)
def test_a_plain_module_is_refused(name: str) -> None:
    rule = getattr(rules, name)
    given = [objectives.Classify()] if "objectives" in inspect.signature(rule).parameters else []
    with pytest.raises(InputError, match=f"{name}.blocks.: got Linear; a rule takes Blocks") as e:
        rule(nn.Linear(2, 2), *given)
    assert "\n" not in str(e.value)


@pytest.fixture(params=NETWORKS)
def case(request: pytest.FixtureRequest) -> networks.Case:
    return NETWORKS[request.param]()


@pytest.fixture(params=ALL_RULES)
def make(request: pytest.FixtureRequest) -> Make:
    return ALL_RULES[request.param]


@pytest.mark.parametrize("name", WHOLE_RULES)
def test_every_parameter_gets_a_gradient(case: networks.Case, name: str) -> None:
    rule = WHOLE_RULES[name](case.blocks)
    assert not grads(rule)
    rule.backward(case.x, case.y)
    assert grads(rule).keys() == dict(rule.named_parameters()).keys()
    assert all(g.isfinite().all() for g in grads(rule).values())
    for p in case.model.parameters():
        assert p.grad is not None


def test_parameters_are_the_networks_and_the_heads(case: networks.Case, make: Make) -> None:
    rule = make(case.blocks)
    ids = [id(p) for p in rule.parameters()]
    assert len(ids) == len(set(ids))
    expected = {id(p) for p in case.model.parameters()}
    for i in range(len(rule.blocks)):
        expected |= {id(p) for part in rule.auxiliary(i) for p in part.parameters()}
    assert set(ids) == expected
    of_blocks = [id(p) for i in range(len(rule.blocks)) for p in rule.parameters_of(i)]
    assert sorted(of_blocks) == sorted(ids)
    for i, block in enumerate(rule.blocks):
        assert {id(p) for p in block.parameters()} <= {id(p) for p in rule.parameters_of(i)}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_accumulate(
    dropout: float, make: Make, same_directions: pytest.MonkeyPatch
) -> None:
    same_directions.undo()
    gradients_accumulate(dropout, make)


def gradients_accumulate(dropout: float, make: Make) -> None:
    """The same random numbers give the same step; the next step draws its own, and is added. A rule
    that draws none leaves the generator alone."""
    drew = False
    for name, network in NETWORKS.items():
        if name in (("mlp", "cnn") if dropout else ("resnet", "transformer")):
            continue  # two networks for each way
        case = network(torch.float64, dropout)
        rule = make(case.blocks)
        state = copy.deepcopy(rule.state_dict())
        rng = torch.get_rng_state()
        rule.backward(case.x, case.y)
        first = grads(rule)
        rule.zero_grad()
        rule.backward(case.x, case.y)
        second = grads(rule)
        drops = any(isinstance(m, _DropoutNd) and m.p and m.training for m in rule.modules())
        if drops or rule.stochastic:
            differs = any(not torch.equal(first[n], second[n]) for n in first)
            drew = drew or differs  # a small batch may draw the same once
            assert differs or not drops, name
        else:
            assert_same(second, first)
            assert torch.equal(torch.get_rng_state(), rng)

        rule.zero_grad()
        rule.load_state_dict(state)
        torch.set_rng_state(rng)
        rule.backward(case.x, case.y)
        rule.backward(case.x, case.y)
        assert_same(grads(rule), {n: first[n] + second[n] for n in first})
    assert drew == (rule.stochastic or dropout > 0)


def _hooks(rule: Rule) -> list[object]:
    """Every hook that is registered on the modules, the parameters, or everywhere."""
    found: list[object] = []
    for module in rule.modules():
        for name in vars(module):
            if name.endswith("_hooks") or "_hooks_" in name:
                found += getattr(module, name) or []
    for p in rule.parameters():
        found += p._backward_hooks or []
        found += p._post_accumulate_grad_hooks or []
    for name in vars(nn_module):
        if name.startswith("_global_") and "hooks" in name:
            found += getattr(nn_module, name) or []
    return found


def test_nothing_is_rebound_stepped_or_left_behind(case: networks.Case, make: Make) -> None:
    rule = make(case.blocks)
    blocks = list(rule.blocks)
    modules = [id(m) for m in rule.modules()]
    before = [(n, id(p), p.data_ptr(), p.requires_grad, p._version) for n, p in _named(rule)]
    buffers = [(n, id(b), b.data_ptr()) for n, b in rule.named_buffers()]
    values = {n: p.detach().clone() for n, p in _named(rule)}
    x, y = case.x.clone(), case.y.clone()
    modes = [m.training for m in rule.modules()]

    rule.backward(case.x, case.y)

    assert before == [
        (n, id(p), p.data_ptr(), p.requires_grad, p._version) for n, p in _named(rule)
    ]
    assert buffers == [(n, id(b), b.data_ptr()) for n, b in rule.named_buffers()]
    assert_same({n: p.detach() for n, p in _named(rule)}, values)
    assert _hooks(rule) == []
    assert blocks == list(rule.blocks)
    assert modules == [id(m) for m in rule.modules()]
    assert modes == [m.training for m in rule.modules()]
    assert torch.equal(case.x, x)
    assert torch.equal(case.y, y)
    assert case.x.grad is None
    assert not case.x.requires_grad


def test_the_hook_check_sees_hooks() -> None:
    rule = rules.Backprop(networks.mlp().blocks)
    handles = [
        rule.blocks[0].register_forward_hook(lambda *_: None),
        rule.blocks[0].register_full_backward_hook(lambda *_: None),
        next(rule.parameters()).register_hook(lambda g: g),
        next(rule.parameters()).register_post_accumulate_grad_hook(lambda p: None),
        nn_module.register_module_forward_hook(lambda *_: None),
    ]
    assert len(_hooks(rule)) == 5
    for handle in handles:
        handle.remove()
    assert _hooks(rule) == []


def _named(rule: Rule) -> list[tuple[str, nn.Parameter]]:
    return list(rule.named_parameters())


@pytest.mark.parametrize("name", LOCAL_RULES)
def test_later_blocks_do_not_reach_earlier_ones(case: networks.Case, name: str) -> None:
    rule = LOCAL_RULES[name](case.blocks)
    rule.backward(case.x, case.y)
    for changed in range(1, len(rule.blocks)):
        other = copy.deepcopy(rule)
        other.zero_grad()
        with torch.no_grad():
            for i in range(changed, len(rule.blocks)):
                for p in other.parameters_of(i):
                    p.add_(torch.randn_like(p))
        other.backward(case.x, case.y)
        for i, (got, wanted) in enumerate(_grads_by_block(other, rule)):
            for a, b in zip(got, wanted, strict=True):
                assert torch.equal(a, b) == (i < changed) or (i >= changed and not b.any())


@pytest.mark.parametrize("name", LOCAL_RULES)
def test_heads_do_not_reach_other_blocks(case: networks.Case, name: str) -> None:
    """A head's weights move its own block's gradient, and nobody else's."""
    rule = LOCAL_RULES[name](case.blocks)
    rule.backward(case.x, case.y)
    other = copy.deepcopy(rule)
    other.zero_grad()
    with torch.no_grad():
        for p in other.objectives[0].parameters():
            p.add_(torch.randn_like(p))
    other.backward(case.x, case.y)
    same = [
        all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
        for got, wanted in _grads_by_block(other, rule)
    ]
    assert same == [False] + [True] * (len(rule.blocks) - 1)


def _grads_by_block(a: Rule, b: Rule) -> list[tuple[list[Tensor], list[Tensor]]]:
    return [
        ([p.grad for p in a.parameters_of(i)], [p.grad for p in b.parameters_of(i)])  # type: ignore[misc]
        for i in range(len(a.blocks))
    ]


def test_backprop_is_not_isolated() -> None:
    """The isolation test can fail: under backprop the last block reaches the first."""
    case = networks.mlp()
    rule = rules.Backprop(case.blocks)
    rule.backward(case.x, case.y)
    before = grads(rule.blocks[0])
    rule.zero_grad()
    with torch.no_grad():
        for p in rule.parameters_of(2):
            p.add_(1.5 * torch.randn_like(p))
    rule.backward(case.x, case.y)
    assert any(not torch.equal(g, before[n]) for n, g in grads(rule.blocks[0]).items())


def test_report_is_detached_and_right(case: networks.Case, make: Make) -> None:
    rule = make(case.blocks)
    logits = networks.predicted(rule, case).detach()
    loss = F.cross_entropy(logits, case.y)
    report = rule.backward(case.x, case.y)
    k = len(rule.blocks)
    assert len(report.local_losses) == len(report.local_logits) == k
    tensors = [report.logits, report.loss, *report.local_losses, *report.local_logits]
    for tensor in tensors:
        assert tensor is None or (tensor.grad_fn is None and not tensor.requires_grad)
    assert torch.equal(report.logits, logits)
    assert torch.equal(report.loss, loss)
    assert torch.equal(report.local_losses[-1], report.loss)
    assert torch.equal(report.local_logits[-1], report.logits)
    # What a block learns from by itself; feedback matrices only learn what its weights do.
    kept = list(rule.feedback) if isinstance(rule, FeedbackRule) else []
    each = [any(part not in kept for part in rule.auxiliary(i)) for i in range(k)]
    each = [True] * k if isinstance(rule, DenoisingRule) else each  # denoisers have no heads
    assert [entry is not None for entry in report.local_losses] == each
    for entry in report.local_losses:
        assert entry is None or entry.shape == ()


def test_report_survives_the_next_step(make: Make) -> None:
    """Nothing that a report holds is written over later."""
    case = networks.cnn()
    rule = make(case.blocks)
    report = rule.backward(case.x, case.y)
    kept = [t.clone() for t in (report.logits, report.loss)]
    opt = torch.optim.SGD(rule.parameters(), lr=1.0)
    opt.step()
    rule.backward(case.x.flip(0), case.y)
    assert torch.equal(report.logits, kept[0])
    assert torch.equal(report.loss, kept[1])


@pytest.mark.parametrize("network", WITHOUT_NORM)
def test_exits_are_the_local_logits(network: str, make: Make) -> None:
    case = WITHOUT_NORM[network]()
    rule = make(case.blocks)
    report = rule.backward(case.x, case.y)
    exits = rule.exits(case.x)
    assert len(exits) == len(report.local_logits)
    for got, wanted in zip(exits, report.local_logits, strict=True):
        assert (got is None) == (wanted is None)
        if got is not None:
            assert torch.equal(got, wanted)


def test_prediction_is_the_models(case: networks.Case, make: Make) -> None:
    rule = make(case.blocks)
    rule.backward(case.x, case.y)
    rule.eval()
    assert not case.model[0].training
    assert torch.equal(rule(case.x), case.model(case.x)) == (type(rule).forward is Rule.forward)
    assert torch.equal(rule.exits(case.x)[-1], rule(case.x))
    with torch.no_grad():
        assert torch.equal(rule(case.x), case.model(case.x)) == (type(rule).forward is Rule.forward)
        assert torch.equal(rule.exits(case.x)[-1], rule(case.x))


def test_state_dict_carries_the_rule(make: Make) -> None:
    for name, network in NETWORKS.items():
        if name in ("mlp", "resnet"):
            continue  # the CNN has what they have
        case, other = network(), network()
        rule, fresh = make(case.blocks), make(other.blocks)
        rule.backward(case.x, case.y)
        rule.zero_grad()
        assert not torch.equal(fresh.eval()(case.x), rule.eval()(case.x))
        fresh.load_state_dict(rule.state_dict())
        assert torch.equal(fresh(case.x), rule(case.x))
        for a, b in zip(fresh.exits(case.x), rule.exits(case.x), strict=True):
            assert a is b is None or torch.equal(a, b)
        for each in (rule, fresh):
            torch.manual_seed(1)  # for a rule that draws
            each.train().backward(case.x, case.y)
        assert_same(grads(fresh), grads(rule))


def test_gradients_are_refused_where_they_are_off(make: Make) -> None:
    case = networks.mlp()
    rule = make(case.blocks)
    with torch.no_grad(), pytest.raises(ValueError, match=r"called while gradients are off") as e:
        rule.backward(case.x, case.y)
    assert "\n" not in str(e.value)


def test_a_copy_of_a_rule_is_independent(make: Make) -> None:
    case = networks.mlp()
    rule = make(case.blocks)
    other = copy.deepcopy(rule)
    torch.manual_seed(1)
    other.backward(case.x, case.y)
    assert not grads(rule)
    torch.manual_seed(1)
    rule.backward(case.x, case.y)
    assert_same(grads(rule), grads(other))
