"""What people do around `loss.backward()` works around `rule.backward(x, y)`."""

from __future__ import annotations

import copy
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
    assert_close,
    assert_same,
    grads,
)
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise import Blocks, LocalRule, Rule, heads, rules
from layerwise.rules.families.perturbation import PerturbationRule


@pytest.mark.parametrize("network", WITHOUT_NORM)
@pytest.mark.parametrize("name", ALL_RULES)
def test_accumulated_batches_are_one_batch(
    network: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "local_forward_gradient":  # every sample has its direction, in whatever batch
        monkeypatch.setattr(f"layerwise.rules.{name}.draw", lambda h, *_: (1e3 * h).cos())
    case = WITHOUT_NORM[network](torch.float64)
    rule = ALL_RULES[name](case.blocks)
    torch.manual_seed(1)
    rule.backward(case.x, case.y)
    whole = grads(rule)
    rule.zero_grad()
    torch.manual_seed(1)
    n = 3
    batches = list(zip(case.x.chunk(n), case.y.chunk(n), strict=True))
    # A batch's directions are in what its own inputs span; its deviation is of its own losses.
    if getattr(rule, "rank", 0) or name == "spsa_normalized":
        alone = []
        for x, y in batches:
            rule.backward(x, y)
            alone.append(grads(rule))
            rule.zero_grad()
        whole = {name: sum(g[name] for g in alone) / n for name in whole}  # type: ignore[misc]
    for x, y in batches:
        rule.backward(x, y, scale=lambda loss: loss / n)
    assert_close(grads(rule), whole)


def _autocast(**options: bool) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, **options)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("checkpoint", [None, False, True])
def test_autocast_is_plain_autocast(network: str, checkpoint: bool | None) -> None:
    """One block (None) or backprop over several, against backward outside the context."""
    case = NETWORKS[network](dropout=0.2, **({"blocks": 1} if checkpoint is None else {}))
    model = copy.deepcopy(case.model)
    rule: Rule = (
        rules.DGL(case.blocks)
        if checkpoint is None
        else rules.Backprop(case.blocks, checkpoint=checkpoint)
    )
    rng = torch.get_rng_state()
    for _ in range(2):
        with _autocast():
            loss = F.cross_entropy(model(case.x), case.y)
        loss.backward()
    torch.set_rng_state(rng)
    for _ in range(2):
        with _autocast():
            report = rule.backward(case.x, case.y)
            assert torch.is_autocast_enabled("cpu")
    assert torch.equal(report.loss, loss.detach())
    assert report.logits.dtype == torch.bfloat16
    for p, q in zip(rule.parameters(), model.parameters(), strict=True):
        assert p.grad.dtype == torch.float32
        assert torch.equal(p.grad, q.grad)


@pytest.mark.parametrize(
    "name", ["equilibrium_propagation", "pepita", "pepita_recomputed", "predictive_coding"]
)
def test_autocast_does_not_round_differences(name: str) -> None:
    """Of activities that are nearly equal."""
    case = networks.cnn()
    rule = ALL_RULES[name](case.blocks)
    logits, wanted = rule.backward(case.x, case.y).logits, grads(rule)
    rule.zero_grad()
    with _autocast():
        assert torch.equal(rule.backward(case.x, case.y).logits, logits)
        assert_same(grads(rule), wanted)
        rule.backward(case.x.bfloat16(), case.y)  # what is given is taken


@pytest.mark.parametrize("network", ["cnn", "transformer"])
@pytest.mark.parametrize("name", ALL_RULES)
def test_one_long_autocast_context(network: str, name: str) -> None:
    """Accumulating and stepping inside one context gives what a context per step gives."""
    case = NETWORKS[network]()
    rule = ALL_RULES[name](case.blocks)
    other = copy.deepcopy(rule)

    def steps(rule: Rule, context: Callable[[], torch.autocast]) -> list[Tensor]:
        torch.manual_seed(1)
        opt = torch.optim.SGD(rule.parameters(), lr=0.5)
        losses = []
        for _ in range(2):
            opt.zero_grad()
            for _ in range(2):
                with context():
                    losses.append(rule.backward(case.x, case.y).loss)
            opt.step()
        return losses

    short = steps(rule, _autocast)
    with _autocast():
        long = steps(other, lambda: _autocast(enabled=True))
    assert_same(dict(other.named_parameters()), dict(rule.named_parameters()))
    assert all(torch.equal(a, b) for a, b in zip(long, short, strict=True))
    assert len({loss.item() for loss in short[::2]}) == 2  # the steps did something


@pytest.mark.parametrize("name", WHOLE_RULES)
def test_every_parameter_gets_a_gradient_under_autocast(name: str) -> None:
    """Also where a block runs with and without a graph in a step."""
    rule = WHOLE_RULES[name](networks.mlp().blocks)
    case = networks.mlp()
    with _autocast():
        rule.backward(case.x, case.y)
    assert grads(rule).keys() == dict(rule.named_parameters()).keys()


@pytest.mark.parametrize("name", LOCAL_RULES)
def test_stepping_on_block_inside_one_long_autocast_context(name: str) -> None:
    """Autocast's cache of cast weights must not outlive the step of a block."""
    case = networks.mlp()
    rule = LOCAL_RULES[name](case.blocks)
    other = copy.deepcopy(rule)

    def step_of(rule: Rule) -> Callable[[int], None]:
        def on_block(i: int) -> None:
            with torch.no_grad():
                for p in rule.parameters_of(i):
                    p.sub_(0.5 * p.grad)
                    p.grad = None

        return on_block

    for _ in range(3):
        with _autocast():
            short = rule.backward(case.x, case.y, on_block=step_of(rule))
    with _autocast():
        for _ in range(3):
            long = other.backward(case.x, case.y, on_block=step_of(other))
    assert_same(dict(other.named_parameters()), dict(rule.named_parameters()))
    assert torch.equal(long.logits, short.logits)


@pytest.mark.parametrize("name", ALL_RULES)
def test_evaluation_before_training_in_one_autocast_context(name: str) -> None:
    """A prediction without gradients must not leave cast weights without gradients behind."""
    case = networks.mlp()
    rule = ALL_RULES[name](case.blocks)
    torch.manual_seed(1)
    with _autocast():
        rule.backward(case.x, case.y)
    alone = grads(rule)
    rule.zero_grad()
    torch.manual_seed(1)
    with _autocast():
        with torch.no_grad():
            rule(case.x)
            rule.exits(case.x)
        rule.backward(case.x, case.y)
    assert_same(grads(rule), alone)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", WHOLE_RULES)
def test_grad_scaler(network: str, name: str) -> None:
    """2^16 is exact in floating point: the unscaled gradients are the gradients."""
    case = NETWORKS[network]()
    rule = WHOLE_RULES[name](case.blocks)
    torch.manual_seed(1)
    report = rule.backward(case.x, case.y)
    wanted = grads(rule)
    buffers = [m for m in rule.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert (network in ("cnn", "resnet")) == bool(buffers)
    rule.zero_grad()
    before = {n: p.detach().clone() for n, p in rule.named_parameters()}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    opt = torch.optim.SGD(rule.parameters(), lr=0.5)
    torch.manual_seed(1)
    scaled = rule.backward(case.x, case.y, scale=scaler.scale)
    assert torch.equal(scaled.loss, report.loss)
    scaler.unscale_(opt)
    assert_close(grads(rule), wanted, atol=1e-9, rtol=1e-6)
    norm = nn.utils.clip_grad_norm_(rule.parameters(), 0.01)
    assert norm > 0.01
    clipped = torch.cat([p.grad.flatten() for p in rule.parameters()]).norm()
    assert clipped == pytest.approx(0.01, rel=1e-3)
    scaler.step(opt)
    scaler.update()
    after = dict(rule.named_parameters())
    assert any(not torch.equal(after[n], before[n]) for n in before)


def test_grad_scaler_skips_a_step_that_overflows() -> None:
    case = networks.mlp()
    rule = ALL_RULES["dgl"](case.blocks)
    before = {n: p.detach().clone() for n, p in rule.named_parameters()}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    opt = torch.optim.SGD(rule.parameters(), lr=0.5)
    rule.backward(case.x * 1e38, case.y, scale=scaler.scale)
    scaler.step(opt)
    scaler.update()
    assert scaler.get_scale() == 2.0**15
    assert_same({n: p.detach() for n, p in rule.named_parameters()}, before)


@pytest.mark.parametrize("name", ALL_RULES)
def test_clipping_per_block_and_whole(name: str) -> None:
    case = networks.mlp(torch.float64)
    rule = ALL_RULES[name](case.blocks)
    rule.backward(case.x, case.y)
    wanted = grads(rule)
    total = torch.cat([g.flatten() for g in wanted.values()]).norm()
    norm = nn.utils.clip_grad_norm_(rule.parameters(), total.item() / 2)
    torch.testing.assert_close(norm, total)
    assert_close(grads(rule), {n: g / 2 for n, g in wanted.items()}, atol=1e-6)


# Dynamo looks at a block's input's .grad, which is no leaf's under backprop.
NO_LEAF = "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"


def _compiled(backend: str, name: str, network: str) -> None:
    case = NETWORKS[network](torch.float64)
    rule = ALL_RULES[name](case.blocks)
    other = copy.deepcopy(rule)
    torch.manual_seed(1)
    rule.backward(case.x, case.y)
    rule.backward(case.x, case.y)
    for block in other.blocks:
        block.compile(backend=backend)
    torch.manual_seed(1)
    other.backward(case.x, case.y)
    other.backward(case.x, case.y)
    assert_close(grads(other), grads(rule), atol=1e-10)
    assert_close(dict(other.named_buffers()), dict(rule.named_buffers()), atol=1e-10)
    assert list(other.state_dict()) == list(rule.state_dict())
    torch._dynamo.reset()


@pytest.mark.filterwarnings(NO_LEAF)
@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("dgl", "mlp"),
        ("backprop", "mlp"),
        pytest.param("dgl", "cnn", marks=pytest.mark.slow),
        pytest.param("backprop_checkpointed", "cnn", marks=pytest.mark.slow),
    ],
)
def test_compiled_blocks(name: str, network: str) -> None:
    _compiled("aot_eager", name, network)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("network", ["cnn", "transformer"])  # half a minute each
@pytest.mark.parametrize("name", ALL_RULES)
def test_compiled_blocks_inductor(name: str, network: str) -> None:
    _compiled("inductor", name, network)


@pytest.mark.parametrize("network", ["cnn", "resnet"])
@pytest.mark.parametrize("name", ALL_RULES)
def test_channels_last(network: str, name: str) -> None:
    case = NETWORKS[network](torch.float64)
    rule = ALL_RULES[name](case.blocks)
    other = copy.deepcopy(rule).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.manual_seed(1)
    rule.backward(case.x, case.y)
    torch.manual_seed(1)
    report = other.backward(case.x.to(memory_format=torch.channels_last), case.y)
    assert_close(grads(other), grads(rule), atol=1e-10)
    assert report.logits.shape == (len(case.x), networks.CLASSES)


def _made(network: str, name: str) -> tuple[networks.Case, Rule]:
    """The same rule at every call, and seeds for its step."""
    torch.manual_seed(0)
    case = NETWORKS[network](torch.float64)
    rule = WHOLE_RULES[name](case.blocks)
    torch.manual_seed(1)
    return case, rule


def unfrozen(network: str, name: str) -> dict[str, Tensor]:
    case, rule = _made(network, name)
    rule.backward(case.x, case.y)
    return grads(rule)


def _assert_unmoved(rule: Rule, wanted: dict[str, Tensor]) -> None:
    """The gradients are as wanted. Where weights move together, all or those of a block, the
    derivative is that along those that move: the gradients are as wanted but for a factor."""
    got = grads(rule)
    assert got.keys() == wanted.keys()
    if isinstance(rule, PerturbationRule):
        together = [list(wanted)]
    elif isinstance(rule, rules.LocalForwardGradient) and rule.weights:
        together = [[n for n in wanted if n.split(".")[1] == str(i)] for i in range(9)]
    else:
        return assert_close(got, wanted)
    for names in filter(None, together if rule.directions == 1 else []):
        a, b = (torch.cat([g[n].flatten() for n in names]) for g in (got, wanted))
        torch.testing.assert_close(a / a.norm(), (a @ b).sign() * b / b.norm())
    return None


@pytest.mark.parametrize("network", ["mlp", "cnn", "transformer"])  # a ResNet has the CNN's parts
@pytest.mark.parametrize("name", WHOLE_RULES)
def test_frozen_parts(network: str, name: str) -> None:
    """A block with its head; a block under a head that learns, as in a linear probe; one weight."""
    wanted = unfrozen(network, name)
    frozen_block_with_its_head(network, name, wanted)
    frozen_weight(network, name, wanted)
    if name in LOCAL_RULES:
        case, rule = _made(network, name)
        rule.blocks[1].requires_grad_(False)
        rule.backward(case.x, case.y)
        _assert_unmoved(rule, {n: g for n, g in wanted.items() if not n.startswith("blocks.1.")})


def frozen_block_with_its_head(network: str, name: str, wanted: dict[str, Tensor]) -> None:
    for frozen in (0, 1, -1):
        case, rule = _made(network, name)
        off = rule.parameters_of(frozen % len(rule.blocks))
        for p in off:
            p.requires_grad_(False)
        names = {n for n, p in rule.named_parameters() if not p.requires_grad}
        calls: list[int] = []
        report = rule.backward(case.x, case.y, on_block=calls.append)
        assert sorted(calls) == list(range(len(rule.blocks)))
        _assert_unmoved(rule, {n: g for n, g in wanted.items() if n not in names})
        assert all(p.grad is None for p in off)
        assert report.loss.isfinite()
        if name in LOCAL_RULES:
            assert all(loss is not None for loss in report.local_losses)


def frozen_weight(network: str, name: str, wanted: dict[str, Tensor]) -> None:
    case, rule = _made(network, name)
    frozen, p = next(iter(rule.blocks[1].named_parameters()))
    p.requires_grad_(False)
    rule.backward(case.x, case.y)
    _assert_unmoved(rule, {n: g for n, g in wanted.items() if n != f"blocks.1.{frozen}"})


@pytest.mark.parametrize("name", WHOLE_RULES)
def test_heads_learn_on_a_frozen_network(name: str) -> None:
    """A local rule's heads have the gradients that they have over a network that learns."""
    case, rule = _made("mlp", name)
    rule.blocks.requires_grad_(False)
    assert rule.backward(case.x, case.y).loss is not None
    assert all(p.grad is None for p in rule.blocks.parameters())
    if name in LOCAL_RULES:
        wanted = unfrozen("mlp", name)
        heads = {n: g for n, g in wanted.items() if not n.startswith("blocks.")}
        _assert_unmoved(rule, heads)


@pytest.mark.parametrize("name", ALL_RULES)
def test_everything_frozen_is_a_report_and_no_gradient(name: str) -> None:
    case = networks.mlp()
    rule = ALL_RULES[name](case.blocks)
    rule.requires_grad_(False)
    report = rule.backward(case.x, case.y)
    assert not grads(rule)
    assert torch.equal(report.logits, networks.predicted(rule, case))


@pytest.mark.parametrize("network", ["mlp", "mlp_norm", "cnn", "resnet", "transformer"])
@pytest.mark.parametrize("name", WHOLE_RULES)
def test_eval_mode_trains_without_dropout_and_statistics(network: str, name: str) -> None:
    case = getattr(networks, network)(dropout=0.5)
    rule = WHOLE_RULES[name](case.blocks).eval()
    buffers = {n: b.clone() for n, b in rule.named_buffers()}
    rng = torch.get_rng_state()
    first = rule.backward(case.x, case.y)
    once = grads(rule)
    rule.zero_grad()
    if rule.stochastic:
        torch.set_rng_state(rng)
    second = rule.backward(case.x, case.y)
    assert torch.equal(torch.get_rng_state(), rng) or rule.stochastic
    assert_same(grads(rule), once)
    assert_same(dict(rule.named_buffers()), buffers)
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.logits, networks.predicted(rule, case))

    rule.train()
    third = rule.backward(case.x, case.y)
    assert not torch.equal(third.logits, first.logits)
    if statistics := [n for n in buffers if "running" in n]:
        assert any(not torch.equal(rule.get_buffer(n), buffers[n]) for n in statistics)


class _Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens)


@pytest.mark.parametrize("head", [heads.Linear(), heads.MLP(width=5)])
def test_a_label_for_every_token(head: heads.Head) -> None:
    """A language model: integers in, (B, T, V) out, labels (B, T)."""
    layer = nn.TransformerEncoderLayer(6, 2, 8, 0.0, batch_first=True)
    parts = [_Tokens(), layer, nn.Linear(6, 11)]
    x = torch.randint(0, 11, (4, 7))
    y = torch.randint(0, 11, (4, 7))
    blocks = Blocks(parts, example=x)
    rule = rules.DGL(blocks, num_classes=11, head=head)
    report = rule.backward(x, y)
    got = grads(rule)
    assert report.logits.shape == (4, 7, 11)
    rule.zero_grad()
    h = x
    for i, block in enumerate(parts):
        h = block(h.detach())
        scores = rule.objectives[i].predict(h)
        assert scores.shape == (4, 7, 11)
        loss = F.cross_entropy(scores.reshape(28, 11), y.reshape(28))
        torch.testing.assert_close(report.local_losses[i], loss.detach())
        loss.backward()
    assert_close(got, grads(rule), atol=1e-7, rtol=1e-5)

    rule.eval()
    longer = torch.randint(0, 11, (2, 9))  # a head per token takes any length
    assert [e.shape for e in rule.exits(longer)] == [(2, 9, 11)] * 3


@pytest.mark.parametrize("name", ALL_RULES)
def test_input_that_requires_grad_is_left_alone_by_local_rules(name: str) -> None:
    case = networks.mlp()
    rule = ALL_RULES[name](case.blocks)
    torch.manual_seed(1)
    rule.backward(case.x, case.y)
    wanted = grads(rule)
    rule.zero_grad()
    x = case.x.clone().requires_grad_()
    torch.manual_seed(1)
    rule.backward(x, case.y)
    assert_same(grads(rule), wanted)
    if isinstance(rule, LocalRule):
        assert x.grad is None
