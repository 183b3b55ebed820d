"""Gradients along random directions: by hand, over a basis, on average, in a subspace."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import networks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, WITHOUT_NORM, MeanSquare, assert_close, assert_same, grads
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise import Blocks, Rule, objectives, rules
from layerwise.errors import InputError
from layerwise.rules.families.perturbation import Directions, draw_seed, generator

LOCAL = "layerwise.rules.local_forward_gradient"


def half_square(z: Tensor, y: Tensor) -> Tensor:
    """The mean over the batch of 1/2 |z - y|^2, with z (B, 1)."""
    return (z[:, 0] - y).square().mean() / 2


def _layer(weight: float) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(layer.weight, weight)
    return layer


def _blocks() -> tuple[Blocks, Tensor, Tensor]:
    x, y = torch.tensor([[1.0], [2.0]]).double(), torch.tensor([0.0, 1.0]).double()
    return Blocks([_layer(2.0), _layer(0.5)], example=x), x, y


def _given(monkeypatch: pytest.MonkeyPatch, *directions: dict[tuple[int, str], Tensor]) -> None:
    def along(self: Directions, i: int, n: int) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
        for name, p in self.blocks[i].named_parameters():
            yield name, p, directions[n][i, name]

    monkeypatch.setattr(Directions, "along", along)


# Blocks h = w1 x and z = w2 h with w1 = 2, w2 = 0.5; x = (1, 2), y = (0, 1). h = (2, 4),
# z = (1, 2), z - y = (1, 1), L = 1/2 (1 + 1) / 2 = 0.5.
#   dL/dw1 = mean (z - y) w2 x = (0.5 + 1) / 2 = 0.75,   dL/dw2 = mean (z - y) h = 3
# Direction v = (1, -0.5).
#   Forward: dL . v = 0.75 - 1.5 = -0.75.
#   eps = 0.5: w = (2.5, 0.25): z = (0.625, 1.25), L = 1/2 (0.390625 + 0.0625) / 2 = 0.11328125
#              w = (1.5, 0.75): z = (1.125, 2.25), L = 1/2 (1.265625 + 1.5625) / 2 = 0.70703125
#   two-sided: 0.11328125 - 0.70703125 = -0.59375;   one-sided: -0.38671875 / 0.5 = -0.7734375
# Each derivative times v.
#   normalize, with a second direction (1, 0.5): w = (2.5, 0.75): z = (1.875, 3.75),
#              L = 1/2 (3.515625 + 7.5625) / 2 = 709/256; L at v is 29/256, at the centre 128/256
#   mean 369/256, sigma = 340/256; derivatives (29 - 128) / 340 and (709 - 128) / 340
#   w1: (-99 + 581) / 340 / 2 = 241/340,   w2: (99 + 581) / 2 / 340 / 2 = 1/2
GOLDEN = {
    "forward": (rules.ForwardGradient, {}, (-0.75, 0.375)),
    "two_sided": (rules.SPSA, {"eps": 0.5}, (-0.59375, 0.296875)),
    "one_sided": (rules.SPSA, {"eps": 0.5, "two_sided": False}, (-0.7734375, 0.38671875)),
}


@pytest.mark.parametrize("size", [1, 10])
def test_normalized(size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the losses' standard deviation (FZOO): the size of the loss does not matter."""
    blocks, x, y = _blocks()
    second = [{(0, "weight"): 1.0, (1, "weight"): w} for w in (-0.5, 0.5)]
    _given(
        monkeypatch, *({k: torch.full((1, 1), w).double() for k, w in v.items()} for v in second)
    )
    rule = rules.SPSA(
        blocks,
        0.5,
        directions=2,
        two_sided=False,
        normalize=True,
        criterion=lambda z, y: size * half_square(z, y),
    )
    assert rule.backward(x, y).loss.item() == 0.5 * size
    assert [p.grad.item() for p in blocks.parameters()] == pytest.approx([241 / 340, 0.5], 1e-14)


def test_normalized_without_a_difference() -> None:
    case = networks.mlp()
    rule = rules.SPSA(
        case.blocks,
        directions=2,
        two_sided=False,
        normalize=True,
        criterion=lambda z, y: z.sum() * 0 + 1,
    )
    rule.backward(case.x, case.y)
    assert all(not p.grad.any() for p in rule.parameters())


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, options, wanted = GOLDEN[name]
    blocks, x, y = _blocks()
    v = {(0, "weight"): torch.tensor([[1.0]]), (1, "weight"): torch.tensor([[-0.5]])}
    _given(monkeypatch, {key: t.double() for key, t in v.items()})
    report = make(blocks, criterion=half_square, **options).backward(x, y)
    assert report.loss.item() == 0.5
    assert report.logits.flatten().tolist() == [1.0, 2.0]
    assert [p.grad.item() for p in blocks.parameters()] == list(wanted)


def _local(blocks: Blocks, **options: object) -> rules.LocalForwardGradient:
    head = objectives.Classify(lambda shape, out: _layer(1.0), half_square)
    return rules.LocalForwardGradient(blocks, head, criterion=half_square, **options)


# As above; block 1 has a head s = a h with a = 1. s = (2, 4), s - y = (2, 3), e = dL/ds = (1, 1.5).
# Of each sample dL/dh = a e = (1, 1.5). With u = (2, -1): derivatives (2, -1.5), delta = (4, 1.5).
#   w1: sum of delta x = 4 + 3 = 7 (the true gradient is 1 + 3 = 4),   a: sum of e h = 2 + 6 = 8
# The last block's gradient is the true one: w2: 3.
# With `weights`, v = (w1: 1, a: -1): 4 - 8 = -4: w1: -4, a: 4; w2, v = 2: 3 2 = 6, times 2: 12.
def test_golden_local(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, x, y = _blocks()
    rule = _local(blocks)
    monkeypatch.setattr(f"{LOCAL}.draw", lambda *_: torch.tensor([[2.0], [-1.0]]).double())
    report = rule.backward(x, y)
    assert [loss.item() for loss in report.local_losses] == [(4 + 9) / 4, 0.5]
    assert [p.grad.item() for p in rule.parameters()] == [7.0, 3.0, 8.0]

    monkeypatch.undo()
    rule = _local(blocks, weights=True)
    rule.zero_grad()
    given = iter(
        [{"blocks.0.weight": 1.0, "objective.head.weight": -1.0}, {"blocks.1.weight": 2.0}] * 2
    )

    def along(self: Directions, i: int, n: int) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
        if not hasattr(self, "given"):
            self.given = next(given)
        for name, p in self.blocks[i].named_parameters():
            yield name, p, torch.full_like(p, self.given[name])

    monkeypatch.setattr(Directions, "along", along)
    rule.backward(x, y)
    assert [p.grad.item() for p in rule.parameters()] == [-4.0, 12.0, 4.0]


def _orthonormal(size: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size).double())[0]


def _backprop(case: networks.Case) -> dict[str, Tensor]:
    rule = rules.Backprop(case.blocks)
    rule.backward(case.x, case.y)
    found = grads(rule)
    rule.zero_grad()
    return found


def test_over_a_basis_it_is_backprop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over n of (g . v_n) v_n with v_n = sqrt(d) q_n is g."""
    case = networks.mlp(torch.float64)
    wanted = _backprop(case)
    keys = [(int(n.split(".")[1]), n.split(".", 2)[2]) for n in wanted]
    shapes = [g.shape for g in wanted.values()]
    d = sum(map(math.prod, shapes))
    basis = math.sqrt(d) * _orthonormal(d)
    split = [
        [part.view(shape) for part, shape in zip(q.split(list(map(math.prod, shapes))), shapes,
                                                 strict=True)]
        for q in basis
    ]  # fmt: skip
    _given(monkeypatch, *(dict(zip(keys, parts, strict=True)) for parts in split))
    rule = rules.ForwardGradient(case.blocks, directions=d)
    rule.backward(case.x, case.y)
    assert_close(grads(rule), wanted, atol=1e-10)
    rule.zero_grad()
    rules.SPSA(case.blocks, eps=1e-4, directions=d).backward(case.x, case.y)
    assert_close(grads(rule), wanted, atol=1e-7)


def test_local_over_a_basis_it_is_greedy(monkeypatch: pytest.MonkeyPatch) -> None:
    case = networks.mlp(torch.float64)
    objective = 0.5 * objectives.Classify(networks.SMALL_HEAD) + 0.25 * MeanSquare()
    greedy = rules.Greedy(case.blocks, 2.0 * objectives.Classify(networks.SMALL_HEAD))
    width = case.blocks.shapes[0][0]
    basis = math.sqrt(width) * _orthonormal(width)
    rule = rules.LocalForwardGradient(
        case.blocks, 2.0 * objectives.Classify(networks.SMALL_HEAD), directions=width
    )
    rule.load_state_dict(greedy.state_dict())
    greedy.backward(case.x, case.y)
    wanted = grads(greedy)
    case.blocks.zero_grad()
    turn = itertools.cycle(basis)
    monkeypatch.setattr(f"{LOCAL}.draw", lambda h, *_: next(turn).expand_as(h))
    rule.backward(case.x, case.y)
    assert_close(grads(rule), wanted, atol=1e-10)

    # Of what has no losses of samples, the directions are of the whole batch.
    size = 6 * width
    basis = math.sqrt(size) * _orthonormal(size)
    whole = rules.LocalForwardGradient(case.blocks, MeanSquare(), directions=size)
    turn = itertools.cycle(basis)
    monkeypatch.setattr(f"{LOCAL}.draw", lambda h, *_: next(turn).view(h.shape))
    whole.zero_grad()
    whole.backward(case.x, case.y)
    got = grads(whole)
    whole.zero_grad()
    rules.Greedy(case.blocks, MeanSquare()).backward(case.x, case.y)
    assert_close(got, grads(whole), atol=1e-10)
    assert objective.parts()[1][0] == 0.25


def _directions(rule: Rule, seed: int, n: int = 0, **options: object) -> dict[str, Tensor]:
    drawn = Directions(rule.blocks, seed, **options)
    return {
        f"blocks.{i}.{name}": v for i in range(len(rule.blocks)) for name, _, v in drawn.along(i, n)
    }


@pytest.mark.parametrize("rademacher", [False, True])
@pytest.mark.parametrize("network", NETWORKS)
def test_against_backprop_along_the_direction(network: str, rademacher: bool) -> None:
    """(g . v) v with the true gradient g; with dropout, and of BatchNorm's statistics one pass."""
    case = NETWORKS[network](torch.float64, dropout=0.3)
    start = {n: b.clone() for n, b in case.blocks.named_buffers()}
    state = torch.get_rng_state()
    seed = draw_seed()
    true = _backprop(case)
    buffers = {n: b.clone() for n, b in case.blocks.named_buffers()}
    for rule, atol in (
        (rules.ForwardGradient(case.blocks, rademacher=rademacher), 1e-10),
        (rules.SPSA(case.blocks, eps=1e-8, rademacher=rademacher), 1e-5),
    ):
        v = _directions(rule, seed, rademacher=rademacher)
        derivative = sum((true[n] * v[n]).sum() for n in true)
        with torch.no_grad():
            for n, b in case.blocks.named_buffers():
                b.copy_(start[n])
        torch.set_rng_state(state)
        rule.backward(case.x, case.y)
        assert_close(grads(rule), {n: derivative * v[n] for n in true}, atol=atol, rtol=atol)
        assert_same(dict(case.blocks.named_buffers()), buffers)
        rule.zero_grad()


@given(networks.chains(), st.booleans(), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_random_chains(case: networks.Case, rademacher: bool, directions: int) -> None:
    """The mean of (g . v) v with the true gradient g."""
    state = torch.get_rng_state()
    seed = draw_seed()
    true = _backprop(case)
    for rule, atol in (
        (rules.ForwardGradient(case.blocks, directions, rademacher), 1e-11),
        (rules.SPSA(case.blocks, 1e-7, directions, rademacher=rademacher), 1e-4),
    ):
        drawn = [_directions(rule, seed, n, rademacher=rademacher) for n in range(directions)]
        slopes = [sum((true[name] * v[name]).sum() for name in true) for v in drawn]
        wanted = {
            name: sum(d * v[name] for d, v in zip(slopes, drawn, strict=True)) / directions
            for name in true
        }
        torch.set_rng_state(state)
        rule.backward(case.x, case.y)
        assert_close(grads(rule), wanted, atol=atol, rtol=atol)
        rule.zero_grad()


@pytest.mark.parametrize("network", WITHOUT_NORM)
def test_local_against_a_naive_implementation(network: str) -> None:
    case = WITHOUT_NORM[network](torch.float64)
    objective = objectives.Classify(networks.SMALL_HEAD)
    rule = rules.LocalForwardGradient(case.blocks, objective, directions=3)
    state = torch.get_rng_state()
    rule.backward(case.x, case.y)
    got = grads(rule)
    rule.zero_grad()
    torch.set_rng_state(state)
    h = case.x
    for i, block in enumerate(case.blocks):
        h = block(h.detach())
        scores = h if i == len(case.blocks) - 1 else rule.objectives[i].predict(h)
        loss = F.cross_entropy(scores, case.y)
        if scores is h:
            loss.backward()
            break
        (g,) = torch.autograd.grad(loss, h, retain_graph=True)
        seed, delta = draw_seed(), torch.zeros_like(h)
        for n in range(3):
            source = generator(h.device, seed, i, n)
            u = torch.randn(h.shape, generator=source, dtype=h.dtype)
            for b in range(len(h)):
                delta[b] += (g[b] * u[b]).sum() * u[b] / 3
        heads = list(rule.objectives[i].parameters())
        loss.backward(inputs=heads, retain_graph=True)
        h.backward(delta)
    assert_close(got, grads(rule), atol=1e-12)


@pytest.mark.parametrize(
    ("make", "rademacher"),
    [(rules.ForwardGradient, False), (rules.ForwardGradient, True), (rules.SPSA, False)],
)
def test_unbiased(make: Callable[..., Rule], rademacher: bool) -> None:
    """The mean lies within the standard errors, and the square is (d + 1) |g|^2 for Gaussian
    directions, (d - 1) |g|^2 for those of +1 and -1."""
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh()).double()
    x, y = torch.randn(5, 3).double(), torch.randint(0, 3, (5,))
    case = networks.Case(Blocks([*net], example=x), x, y, False)
    g = torch.cat([t.flatten() for t in _backprop(case).values()])
    rule = make(case.blocks, rademacher=rademacher)
    error = _drawn(rule, rule, x, y, 400) - g
    z = error.mean(0) / (error.std(0) / math.sqrt(len(error)))
    assert z.abs().max() < 4
    assert z.square().mean() < 2
    spread = error.square().sum(1).mean() / g.square().sum()
    assert spread == pytest.approx(len(g) + (-1 if rademacher else 1), rel=0.25)


def _drawn(rule: Rule, of: nn.Module, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """The gradients of as many steps, (steps, weights)."""
    found = []
    for _ in range(steps):
        rule.zero_grad()
        rule.backward(x, y)
        found.append(torch.cat([t.flatten() for t in grads(of).values()]))
    return torch.stack(found)


def test_local_unbiased() -> None:
    parts = [nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double(), nn.Linear(4, 3).double()]
    x, y = torch.randn(5, 3).double(), torch.randint(0, 3, (5,))
    blocks = Blocks(parts, example=x)
    for options in ({}, {"weights": True}):
        rule = rules.LocalForwardGradient(
            blocks, objectives.Classify(networks.SMALL_HEAD), **options
        )
        greedy = rules.Greedy(blocks, objectives.Classify(networks.SMALL_HEAD))
        greedy.load_state_dict(rule.state_dict())
        greedy.backward(x, y)
        g = torch.cat([t.flatten() for t in grads(blocks[0]).values()])
        error = _drawn(rule, blocks[0], x, y, 250) - g
        z = error.mean(0) / (error.std(0) / math.sqrt(len(error)))
        assert z.abs().max() < 4
        assert z.square().mean() < 2.5
        blocks.zero_grad()


def test_spsa_on_a_quadratic_is_the_forward_gradient() -> None:
    """Two-sided, for any eps; else eps v^T H v / 2 is between them."""
    x, y = torch.randn(7, 4).double(), torch.randn(7).double()
    blocks = Blocks([nn.Linear(4, 1).double()], example=x)
    state = torch.get_rng_state()

    def step(rule: Rule) -> dict[str, Tensor]:
        torch.set_rng_state(state)
        rule.zero_grad()
        rule.backward(x, y)
        return grads(rule)

    exact = step(rules.ForwardGradient(blocks, criterion=half_square))
    for eps in (0.01, 3.0):
        rule = rules.SPSA(blocks, eps, criterion=half_square)
        assert_close(step(rule), exact, atol=1e-10)
        v = _directions(rule, _seed_at(state))
        moved = F.linear(x, v["blocks.0.weight"], v["blocks.0.bias"])  # v^T H v = mean (v x)^2
        one_sided = step(rules.SPSA(blocks, eps, two_sided=False, criterion=half_square))
        between = eps * moved.square().mean() / 2
        assert_close(one_sided, {n: exact[n] + between * v[n] for n in exact}, atol=1e-10)


def _seed_at(state: Tensor) -> int:
    torch.set_rng_state(state)
    return draw_seed()


def test_spsas_error_goes_with_the_square_of_eps() -> None:
    case = networks.transformer(torch.float64)
    state = torch.get_rng_state()

    def step(make: Callable[[Blocks], Rule]) -> Tensor:
        torch.set_rng_state(state)
        case.blocks.zero_grad()
        make(case.blocks).backward(case.x, case.y)
        return torch.cat([g.flatten() for g in grads(case.blocks).values()])

    exact = step(rules.ForwardGradient)
    for two_sided, order in ((True, 2), (False, 1)):
        far, near = (
            (step(lambda b, e=eps, t=two_sided: rules.SPSA(b, e, two_sided=t)) - exact).norm()
            for eps in (2e-3, 1e-3)
        )
        assert far / near == pytest.approx(2**order, rel=0.1)


def _opposite(along: Callable) -> Callable:
    return lambda *a: ((name, p, -v) for name, p, v in along(*a))


def test_the_opposite_direction_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    case = networks.cnn(torch.float64)
    for make in (rules.ForwardGradient, rules.SPSA):
        rule = make(case.blocks)
        rule.zero_grad()
        state = torch.get_rng_state()
        rule.backward(case.x, case.y)
        wanted = grads(rule)
        rule.zero_grad()
        torch.set_rng_state(state)
        with monkeypatch.context() as patch:
            patch.setattr(Directions, "along", _opposite(Directions.along))
            rule.backward(case.x, case.y)
        assert_close(grads(rule), wanted, atol=1e-9)


def _thin() -> networks.Case:
    """Layers with more inputs than a batch spans: 4 vectors, 2 x 4 patches of 27 numbers."""
    parts = [
        nn.Sequential(nn.Conv2d(3, 5, 3), nn.Tanh()),
        nn.Sequential(nn.Flatten(), nn.Linear(20, 16), nn.Tanh()),
        nn.Linear(16, 3),
    ]
    x = torch.randn(2, 3, 4, 4).double()
    blocks = Blocks([part.double() for part in parts], example=x)
    return networks.Case(blocks, x, torch.tensor([0, 2]), True)


def test_a_weights_gradient_is_in_what_its_inputs_span() -> None:
    case = _thin()
    true = _backprop(case)
    directions = Directions(case.blocks, seed=3, rank=9)
    with directions.watch():
        case.blocks(case.x)
    list(itertools.chain(*(directions.along(i, 0) for i in range(3))))
    found = 0
    for name, p in case.blocks.named_parameters():
        if p.dim() > 1:
            q, g = directions.bases[p], true[f"blocks.{name}"].flatten(1)
            assert q.shape == (g.shape[1], 9)
            torch.testing.assert_close(q.T @ q, torch.eye(9).double(), atol=1e-12, rtol=0.0)
            torch.testing.assert_close(g @ q @ q.T, g, atol=1e-12, rtol=0.0)
            found += 1
    assert found == 3


def test_a_subspace_is_smaller_by_as_much() -> None:
    """|v|^2 is r O and not I O; a weight with no more inputs, and a bias, keep the whole space."""
    case = _thin()
    for rank in (0, 2, 27):
        directions = Directions(case.blocks, seed=3, rank=rank)
        with directions.watch():
            case.blocks(case.x)
        square = torch.zeros(3)
        for n in range(200):
            for i in range(3):
                square[i] += sum(v.square().sum() for _, _, v in directions.along(i, n)) / 200
        sizes = [(5, 27), (16, 20), (3, 16)]
        wanted = [o * ((i if rank in (0, 27) else rank) + 1.0) for o, i in sizes]
        torch.testing.assert_close(square, torch.tensor(wanted), atol=0.0, rtol=0.1)


def test_directions_of_a_subspace_lose_nothing() -> None:
    """Its derivative along v is the true one, and the estimate is better by the dimensions left."""
    case = _thin()
    true = _backprop(case)
    errors = []
    for rank in (0, 9):
        rule = rules.ForwardGradient(case.blocks, directions=60, rank=rank)
        rule.backward(case.x, case.y)
        errors.append(sum((grads(rule)[n] - g).square().sum() for n, g in true.items()))
        rule.zero_grad()
    dimensions = [5 * 28 + 16 * 21 + 3 * 17, 5 * 10 + 16 * 10 + 3 * 10]
    assert errors[1] / errors[0] == pytest.approx(dimensions[1] / dimensions[0], rel=0.5)


def test_grouped_transposed_and_computed_weights_keep_the_whole_space() -> None:
    parts = [
        nn.Conv2d(4, 8, 3, groups=2),
        nn.ConvTranspose2d(8, 4, 2),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 2)),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 3)),
    ]
    x, y = torch.randn(2, 4, 6, 6), torch.tensor([0, 1])
    rule = rules.SPSA(Blocks(parts, example=x), rank=3)
    rule.backward(x, y)
    assert all(p.grad.any() for p in rule.parameters())
    directions = Directions(rule.blocks, 1, rank=3)
    with directions.watch():
        rule(x)
    assert list(directions.sketches) == [rule.blocks[3][1].weight]


def test_a_copy_of_one_block_at_a_time() -> None:
    """A block runs with moved weights, and they are gone when the next runs."""
    case = networks.mlp()
    rule = rules.SPSA(case.blocks)
    original = {id(p) for p in case.blocks.parameters()}
    seen: list[list[bool]] = []
    handles = [
        block.register_forward_pre_hook(
            lambda *_: seen.append(
                [any(id(p) not in original for p in b.parameters()) for b in case.blocks]
            )
        )
        for block in case.blocks
    ]
    rule.backward(case.x, case.y)
    for handle in handles:
        handle.remove()
    alone = [[i == k for k in range(3)] for i in range(3)]
    assert seen == [[False] * 3] * 3 + alone * 2


def test_a_block_that_changes_its_input() -> None:
    parts = [nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4)), nn.Linear(4, 3)]
    x, y = torch.randn(5, 4), torch.randint(0, 3, (5,))
    before = x.clone()
    blocks = Blocks(parts, example=x.clone())
    for rule in (rules.ForwardGradient(blocks, directions=2), rules.SPSA(blocks)):
        rule.backward(x, y)
        assert torch.equal(x, before)


def test_what_is_not_differentiable_in_forward_mode() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LSTM(3, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)[0][:, -1]

    x, y = torch.randn(2, 5, 3), torch.tensor([0, 1])
    blocks = Blocks([Recurrent(), nn.Linear(4, 2)], example=x)
    attention = F.scaled_dot_product_attention
    with pytest.raises(InputError, match=r"ForwardGradient: .* or take SPSA") as e:
        rules.ForwardGradient(blocks).backward(x, y)
    assert "\n" not in str(e.value)
    assert F.scaled_dot_product_attention is attention
    rule = rules.SPSA(blocks, criterion=lambda z, y: (z.argmax(1) != y).double().mean())
    rule.backward(x, y)
    assert all(p.grad is not None for p in rule.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda b: rules.SPSA(b, eps=0.0), "eps=0.0"),
        (lambda b: rules.SPSA(b, directions=0), "directions=0"),
        (lambda b: rules.SPSA(b, directions=2, normalize=True), "two_sided=True.*two_sided=False"),
        (lambda b: rules.SPSA(b, two_sided=False, normalize=True), "directions=1.* at least 2"),
        (lambda b: rules.ForwardGradient(b, directions=-1), "directions=-1"),
        (lambda b: rules.ForwardGradient(b, rank=-1), "rank=-1"),
        (lambda b: rules.LocalForwardGradient(b, MeanSquare(), directions=0), "directions=0"),
    ],
)
def test_bad_options(make: Callable[[Blocks], Rule], message: str) -> None:
    with pytest.raises(InputError, match=message) as e:
        make(networks.mlp().blocks)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("options", [{}, {"weights": True}])
def test_objectives_of_views_and_of_what_is_before_the_pooling(options: dict) -> None:
    """All that an objective reads moves with the block's output."""
    case = networks.cnn()
    objective = objectives.SupervisedContrastive() + objectives.Reconstruct()
    rule = rules.LocalForwardGradient(case.blocks, [objective, *[None] * 2], **options)
    report = rule.backward(torch.cat([case.x, case.x + 0.1]), case.y)
    assert report.local_losses[0].isfinite()
    assert all(p.grad is not None for p in rule.parameters_of(0))
