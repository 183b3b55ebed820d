"""Synthetic gradients: the limit, what is updated when, synthetic inputs, the synthesizer."""

from __future__ import annotations

import networks
import pytest
import torch
from networks import NETWORKS, SmallSynthesizer, assert_close, grads
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise import Blocks, heads, rules


class Perfect(nn.Module):
    """The gradient of each sample's own loss, through the blocks that follow."""

    def __init__(self, following: list[nn.Module]):
        super().__init__()
        self.following = [following]  # not registered: they are the network's

    def forward(self, h: Tensor, y: Tensor | None) -> Tensor:
        with torch.enable_grad():
            leaf = h.detach().requires_grad_()
            z = leaf
            for block in self.following[0]:
                z = block(z)
            (gradient,) = torch.autograd.grad(F.cross_entropy(z, y, reduction="sum"), leaf)
        return gradient


@pytest.mark.parametrize("network", NETWORKS)
def test_perfect_synthesizers_are_backprop(network: str) -> None:
    """Whatever the kind of network; BatchNorm in train mode couples samples, so in eval mode its
    gradient is still that of backpropagation."""
    case = NETWORKS[network](torch.float64)
    blocks = list(case.blocks)
    depths = iter(range(1, len(blocks)))
    rule = rules.DNI(case.blocks, lambda shape, classes: Perfect(blocks[next(depths) :]), True)
    rule.eval()
    report = rule.backward(case.x, case.y)
    got = grads(rule)
    rule.zero_grad()
    F.cross_entropy(case.model(case.x), case.y).backward()
    assert_close(got, grads(rule), atol=1e-12)
    for loss in report.local_losses[:-1]:
        assert loss < 1e-28


@pytest.mark.parametrize("target", ["sample", "batch"])
@pytest.mark.parametrize("context", [False, True])
def test_against_a_naive_implementation(context: bool, target: str) -> None:
    """Sample by sample, with whole graphs."""
    case = networks.plain_cnn(torch.float64)
    rule = rules.DNI(case.blocks, SmallSynthesizer, context, target=target)
    rule.backward(case.x, case.y)
    got = grads(rule)
    rule.zero_grad()

    first, second, last = rule.blocks
    m1, m2 = rule.synthesizers
    n = len(case.x)
    # What a prediction counts in the blocks' gradients, what it predicts of the mean loss, and the
    # share of a sample's mean squared error in the loss of a synthesizer.
    counts, of_mean = (1 / n, n) if target == "sample" else (1, 1)

    def error(g: Tensor, d: Tensor) -> Tensor:
        squares = (g - of_mean * d) ** 2
        return (squares.mean() if target == "sample" else squares.sum()) / n

    for x, y in zip(case.x.split(1), case.y.split(1), strict=True):
        c = y if context else None
        h1 = first(x)
        g1 = m1(h1.detach(), c)
        ((h1 * g1.detach()).sum() * counts).backward()
        h1 = h1.detach().requires_grad_()
        h2 = second(h1)
        g2 = m2(h2.detach(), c)
        ((h2 * g2.detach()).sum() * counts).backward()
        error(g1, h1.grad).backward()
        h2 = h2.detach().requires_grad_()
        (F.cross_entropy(last(h2), y) / n).backward()
        error(g2, h2.grad).backward()
    assert_close(got, grads(rule), atol=1e-13)


def _probable(p: float, steps: int = 1) -> tuple[rules.DNI, list[set[str]]]:
    case = networks.mlp()
    rule = rules.DNI(case.blocks, SmallSynthesizer, update_probability=p)
    seen = []
    for _ in range(steps):
        rule.zero_grad()
        report = rule.backward(case.x, case.y)
        assert torch.equal(report.logits, case.model(case.x))
        assert report.loss.isfinite()
        seen.append({".".join(name.split(".")[:2]) for name in grads(rule)})
    return rule, seen


def test_update_probability() -> None:
    """Each block is updated with its own draw; the synthesizer before it exactly then."""
    _, seen = _probable(0.3, steps=400)
    for i in range(3):
        share = sum(f"blocks.{i}" in names for names in seen) / len(seen)
        assert 0.2 < share < 0.4  # 4.4 standard deviations
    for i in range(2):
        for names in seen:
            assert (f"synthesizers.{i}" in names) == (f"blocks.{i + 1}" in names)
    both = sum({"blocks.0", "blocks.1"} <= names for names in seen) / len(seen)
    assert 0.03 < both < 0.15  # independent: 0.09


def test_probability_one_draws_nothing() -> None:
    before = torch.get_rng_state()
    case = networks.mlp()
    rule = rules.DNI(case.blocks, SmallSynthesizer)
    after = torch.get_rng_state()
    rule.backward(case.x, case.y)
    assert torch.equal(torch.get_rng_state(), after)
    assert not torch.equal(before, after)


def test_synthetic_inputs() -> None:
    """Block k learns on what is predicted from the network's input, its predictor to give what
    block k-1 gave."""
    case = networks.mlp(torch.float64)
    rule = rules.DNI(case.blocks, SmallSynthesizer, synthetic_inputs=True).eval()
    report = rule.backward(case.x, case.y)
    got = grads(rule)
    assert torch.equal(rule(case.x), case.model(case.x))
    rule.zero_grad()

    first, second, last = rule.blocks
    m1, m2 = rule.synthesizers
    i1, i2 = rule.inputs
    n = len(case.x)
    h1 = first(case.x)
    g1 = m1(h1.detach(), None)
    h1.backward(g1.detach() / n)
    s1 = i1(case.x)
    F.mse_loss(s1, h1.detach()).backward()
    s1 = s1.detach().requires_grad_()
    h2 = second(s1)
    g2 = m2(h2.detach(), None)
    h2.backward(g2.detach() / n)
    F.mse_loss(g1, n * s1.grad).backward()
    s2 = i2(case.x)
    F.mse_loss(s2, h2.detach()).backward()
    s2 = s2.detach().requires_grad_()
    logits = last(s2)
    F.cross_entropy(logits, case.y).backward()
    F.mse_loss(g2, n * s2.grad).backward()
    assert_close(got, grads(rule), atol=1e-13)
    torch.testing.assert_close(report.logits, logits.detach())


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("network", NETWORKS)
def test_training_begins_without_a_gradient(network: str, context: bool) -> None:
    """The synthesizers' last layers are nought: no block but the last moves in the first step, and
    no synthesizer but the last, of which only the last layer."""
    case = NETWORKS[network]()
    rule = rules.DNI(case.blocks, heads.Synthesizer(), context, synthetic_inputs=True)
    rule.backward(case.x, case.y)
    for i in range(len(rule.blocks) - 1):
        assert all(p.grad is None or not p.grad.any() for p in rule.blocks[i].parameters())
        moving = [n for n, p in rule.synthesizers[i].named_parameters() if p.grad.any()]
        last = i == len(rule.blocks) - 2
        layer = len(rule.synthesizers[i].rest) - 1
        assert moving == ([f"rest.{layer}.weight", f"rest.{layer}.bias"] if last else [])


def test_the_synthesizer_of_feature_maps() -> None:
    """conv-BN-ReLU, + label, conv-BN-ReLU, conv; kernel 5, same channels."""
    made = heads.Synthesizer()((4, 8, 8), 3)
    kinds = [type(m).__name__ for m in (made.first, *made.rest)]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "ReLU", "Conv2d"]
    # 3 kernels, the last bias, 2 BatchNorms, the labels
    assert sum(p.numel() for p in made.parameters()) == 3 * 4 * 4 * 25 + 4 + 2 * 2 * 4 + 3 * 4
    made.rest[-1].weight.data.normal_()
    h, y = torch.randn(5, 4, 8, 8), torch.tensor([0, 1, 2, 1, 0])
    onehot = F.one_hot(y, 3).float()
    added = made.first(h) + (onehot @ made.context.weight)[:, :, None, None]
    assert torch.equal(made(h, y), made.rest(added))
    assert not torch.allclose(made(h, y), made(h, y.flip(0).roll(1)))


@pytest.mark.slow
def test_one_step_learns() -> None:
    """A few steps on one batch: the synthesizers' errors fall, and so does the loss."""
    torch.manual_seed(0)
    case = networks.cnn()
    rule = rules.DNI(case.blocks, heads.Synthesizer(kernel_size=3), context=True)
    optimizer = torch.optim.Adam(rule.parameters(), lr=3e-3)
    history = []
    for _ in range(150):
        optimizer.zero_grad()
        report = rule.backward(case.x, case.y)
        optimizer.step()
        history.append([float(loss) for loss in report.local_losses])
    assert history[-1][-1] < 0.05 * history[0][-1]
    assert all(last < 0.2 * max(h[i] for h in history) for i, last in enumerate(history[-1]))


def test_a_block_that_starts_in_place() -> None:
    """The synthesizer before it keeps what it was given."""

    def network(inplace: bool) -> Blocks:
        torch.manual_seed(1)
        first = nn.Linear(3, 4)
        second = nn.Sequential(nn.ReLU(inplace=inplace), nn.Linear(4, 3))
        return Blocks([first, second], example=torch.zeros(2, 3))

    x, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    found = []
    for inplace in (False, True):
        for make in (lambda b: rules.DNI(b, SmallSynthesizer), rules.DirectGlobal):
            blocks = network(inplace)
            rule = make(blocks)
            rule.backward(x, y)
            found.append(grads(rule))
    assert_close(found[0], found[2])
    assert_close(found[1], found[3])


def test_bad_input() -> None:
    case = networks.mlp()
    for p in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"update_probability=.*more than 0, at most 1"):
            rules.DNI(case.blocks, update_probability=p)
    with pytest.raises(ValueError, match="give an example"):
        rules.DNI(Blocks([nn.Linear(3, 3), nn.Linear(3, 3)]))
    with pytest.raises(ValueError, match="kernel_size=4"):
        heads.Synthesizer(kernel_size=4)
    with pytest.raises(ValueError, match="layers=-1"):
        heads.Synthesizer(layers=-1)


def test_the_targets_differ_by_the_batch_size() -> None:
    """A synthesizer that predicts the mean's gradient gives a block B times the gradient that the
    same prediction gives as that of a sample's own loss."""
    found = {}
    for target in ("sample", "batch"):
        torch.manual_seed(0)
        case = networks.plain_cnn(torch.float64)
        rule = rules.DNI(case.blocks, SmallSynthesizer, target=target)
        rule.backward(case.x, case.y)
        found[target] = {n: g for n, g in grads(rule).items() if n.startswith("blocks.0")}
    for name, gradient in found["sample"].items():
        torch.testing.assert_close(found["batch"][name], len(case.x) * gradient)


def test_the_bias_of_a_synthesizer() -> None:
    """Without `zero_bias`, the first gradient is PyTorch's default bias, at every position."""
    torch.manual_seed(0)
    zero = heads.Synthesizer()((4, 6, 6), None)
    given = heads.Synthesizer(zero_bias=False)((4, 6, 6), None)
    h = torch.randn(3, 4, 6, 6)
    assert torch.equal(zero(h, None), torch.zeros_like(h))
    bias = given.rest[-1].bias
    assert 0 < bias.abs().max() <= (4 * 25) ** -0.5
    assert torch.equal(given(h, None), bias[:, None, None].expand_as(h))


@pytest.mark.parametrize("context", [False, True])
def test_a_linear_synthesizer(context: bool) -> None:
    """M(h, c) = W h + b + C_c is zero at first, so its gradients are -2/(B D) sum d h', the same of
    d, and of d over each class, with the gradient d of each sample's own loss."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    blocks = Blocks([model[:2], model[2:]], example=x)
    rule = rules.DNI(blocks, heads.Synthesizer(layers=0), context)
    rule.backward(x, y)
    h = model[:2](x).detach()
    d = (model[2](h).softmax(1) - F.one_hot(y, 3)) @ model[2].weight
    (made,) = rule.synthesizers
    wanted = {"first.weight": -2 / 20 * d.T @ h, "first.bias": -2 / 20 * d.sum(0)}
    if context:
        of_classes = torch.stack([d[y == c].sum(0) for c in range(3)])
        wanted["context.weight"] = -2 / 20 * of_classes
    found = {name: p.grad for name, p in made.named_parameters()}
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient.detach())


def test_a_synthesizer_without_batch_norm() -> None:
    """Linear, ReLU, linear: a sample's gradient does not depend on its batch."""
    made = heads.Synthesizer(layers=1, batch_norm=False)((4,), None)
    first, _, last = made.first, *made.rest
    assert not last.weight.any()
    torch.nn.init.normal_(last.weight)
    h = torch.randn(5, 4)
    wanted = (h @ first.weight.T + first.bias).relu() @ last.weight.T + last.bias
    torch.testing.assert_close(made(h), wanted)
    torch.testing.assert_close(made(h[:1]), wanted[:1])
    maps = heads.Synthesizer(batch_norm=False)((2, 4, 4), None)
    assert [type(m).__name__ for m in maps.rest] == ["ReLU", "Conv2d", "ReLU", "Conv2d"]


def test_with_the_output_error_for_context_it_is_direct_feedback() -> None:
    """Czarnecki et al. 2017: a frozen synthesizer that reads the output's error e and gives e B is
    direct feedback alignment."""
    case = networks.plain_cnn(torch.float64)
    direct = rules.DirectFeedbackAlignment(case.blocks)
    direct.backward(case.x, case.y)
    expected = grads(direct)
    direct.zero_grad()

    class Frozen(nn.Module):
        def __init__(self, k: int):
            super().__init__()
            self.k, self.following = k, [list(case.blocks)[k + 1 :]]

        def forward(self, h: Tensor, y: Tensor | None) -> Tensor:
            with torch.no_grad():
                z = nn.Sequential(*self.following[0])(h)
                e = z.softmax(1) - F.one_hot(y, z.shape[1])  # of each sample's own loss
                return direct.feedback(self.k, e, h.shape)

    numbers = iter(range(len(case.blocks)))
    rule = rules.DNI(case.blocks, lambda shape, classes: Frozen(next(numbers)), context=True)
    # A synthesizer that cannot learn has no loss to differentiate.
    rule.learn = lambda k, done, back, batch: torch.zeros(())  # type: ignore[method-assign]
    rule.backward(case.x, case.y)
    assert_close(grads(rule), expected, atol=1e-15)


def test_a_linear_synthesizer_is_exact_for_the_squared_error_of_a_linear_network() -> None:
    """With z = h V^T + v and L = mean over C classes of (z - t)^2, t the one-hot label:

        dL/dh = 2/C (h V^T V + v V) - 2/C t V

    which is linear in h and t; so DNI's gradient is backpropagation's (Czarnecki et al. 2017).
    """
    first, last = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()
    x, y = torch.randn(6, 4).double(), torch.randint(3, (6,))

    def squared(z: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(z, F.one_hot(y, 3).to(z))

    blocks = Blocks([first, last], example=x)
    rule = rules.DNI(blocks, heads.Synthesizer(layers=0), context=True, criterion=squared)
    synthesizer = rule.synthesizers[0].double()
    with torch.no_grad():
        V, v = last.weight, last.bias
        synthesizer.first.weight.copy_(2 / 3 * V.T @ V)
        synthesizer.first.bias.copy_(2 / 3 * v @ V)
        synthesizer.context.weight.copy_(-2 / 3 * V)
    report = rule.backward(x, y)
    assert report.local_losses[0] < 1e-30
    got = grads(Blocks([first, last], example=x))
    rule.zero_grad()
    squared(last(first(x)), y).backward()
    assert_close(got, grads(Blocks([first, last], example=x)), atol=1e-15)
