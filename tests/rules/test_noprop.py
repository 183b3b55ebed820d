"""Rules that train blocks as denoisers: one step by hand, schedules, naive implementations."""

from __future__ import annotations

import copy
import math

import networks
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import assert_close, grads
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise import Blocks, InputError, cut, models, rules
from layerwise.models.denoisers import Denoiser, cosine_signal, posterior
from layerwise.models.diffusion import equal_shares
from layerwise.runtime.layer_parallel import check_rule


class Scaled(Denoiser):
    """u = w z, whatever the image."""

    def __init__(self, w: float, **step: object):
        super().__init__((1, 1, 1), 2, **step)  # type: ignore[arg-type]
        self.w = nn.Parameter(torch.tensor(w))

    def features(self, x: Tensor) -> Tensor:
        return x

    def estimate(self, features: Tensor, z: Tensor) -> Tensor:
        return self.w * z


def test_golden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two classes, label 0, so u = (1, 0); all noise is (1, 2); eta = 0.4.

    Denoiser 1, from (0, 1) to (0.6, 0.8): SNR 0 and 9/16, z_0 = (1, 2), w = 0.5: u_1 = (0.5, 1),
        error (-0.5, 1): loss 0.4 * 9/16 * 1.25 / 2 = 0.140625,
        dw = 0.4 * 9/16 (-0.5 * 1 + 1 * 2) = 0.3375
    Denoiser 2, from (0.6, 0.8) to (0.8, 0.6): SNR 9/16 and 16/9, z_1 = 0.6 u + 0.8 (1, 2)
        = (1.4, 1.6), w = 1: error (0.4, 1.6), dw = 0.4 (16/9 - 9/16) (0.4 * 1.4 + 1.6 * 1.6)
    Readout, of zeros: z_2 = 0.8 u + 0.6 (1, 2) = (1.4, 1.2), p = (1/2, 1/2):
        dW = (-1/2, 1/2)^T (1.4, 1.2), db = (-1/2, 1/2)
    """
    monkeypatch.setattr(torch, "randn_like", lambda u: torch.tensor([1.0, 2.0]).expand_as(u))
    first = Scaled(
        0.5,
        before=(0.0, 1.0),
        after=(0.6, 0.8),
        coefficients=(1.0, 0.0, 0.0),
        first=True,
        last=False,
        noise=0.0,
    )
    second = Scaled(
        1.0,
        before=(0.6, 0.8),
        after=(0.8, 0.6),
        coefficients=(1.0, 0.0, 0.0),
        first=False,
        last=True,
        noise=0.0,
    )
    readout = nn.Linear(2, 2)
    nn.init.zeros_(readout.weight)
    nn.init.zeros_(readout.bias)
    rule = rules.NoProp(Blocks([first, second, readout]), eta=0.4)
    report = rule.backward(torch.zeros(1, 1, 1, 1), torch.tensor([0]))
    assert report.local_losses[0].item() == pytest.approx(0.140625)
    assert first.w.grad.item() == pytest.approx(0.3375)
    assert second.w.grad.item() == pytest.approx(0.4 * (16 / 9 - 9 / 16) * 3.12)
    torch.testing.assert_close(readout.weight.grad, torch.tensor([[-0.7, -0.6], [0.7, 0.6]]))
    torch.testing.assert_close(readout.bias.grad, torch.tensor([-0.5, 0.5]))
    assert report.loss.item() == pytest.approx(math.log(2))


@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.integers(1, n), st.just(n))))
def test_a_step_is_the_posterior(step: tuple[int, int]) -> None:
    """With u_t the label's own vector, z_t has the mean and variance that it is to have."""
    t, steps = step
    before, after = cosine_signal(t - 1, steps), cosine_signal(t, steps)
    a, b, c = posterior(before, after)
    assert a + b * math.sqrt(before) == pytest.approx(math.sqrt(after), abs=1e-12)
    assert b**2 * (1 - before) + c == pytest.approx(1 - after, abs=1e-12)
    assert before < after < 1
    assert cosine_signal(0, steps) == 0


def naive(rule: rules.NoProp, case: networks.Case, vectors: Tensor) -> Tensor:
    """Eq. 8 as it is written, in the order of time."""
    *denoisers, readout = [m for block in rule.blocks for m in block]
    signal = [cosine_signal(t, len(denoisers)) for t in range(len(denoisers) + 1)]
    total = torch.zeros(()).double()
    for t, denoiser in enumerate(denoisers, 1):
        u = vectors[case.y]
        z = math.sqrt(signal[t - 1]) * u + math.sqrt(1 - signal[t - 1]) * torch.randn_like(u)
        out = denoiser.estimate(denoiser.features(case.x), z)
        snr = [s / (1 - s) for s in signal[t - 1 : t + 1]]
        for b in range(len(case.y)):
            square = ((out[b] - u[b]) ** 2).sum()
            total = total + 0.3 / 2 * (snr[1] - snr[0]) * square / len(case.y)
    u = vectors[case.y]
    z = math.sqrt(signal[-1]) * u + math.sqrt(1 - signal[-1]) * torch.randn_like(u)
    return total + F.cross_entropy(readout(z), case.y)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("embedding", [None, 5])
def test_noprop_against_a_naive_implementation(embedding: int | None, learned: bool) -> None:
    net = models.noprop_cnn(
        (2, 8, 8), 3, steps=3, channels=2, width=6, embedding=embedding, dropout=0.0
    ).double()
    x, y = torch.randn(6, 2, 8, 8).double(), torch.randint(0, 3, (6,))
    case = networks.Case(Blocks(networks.grouped(net, [1, 3]), example=x), x, y, False)
    rule = rules.NoProp(case.blocks, 0.3, learned)
    torch.manual_seed(3)
    rule.backward(x, y)
    got = grads(rule)
    rule.zero_grad()
    torch.manual_seed(3)
    vectors = rule.objectives[2].vectors
    assert vectors.shape == (3, embedding or 3)
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(3).double())
    naive(rule, case, vectors).backward()
    assert ("objectives.2.vectors" in got) == learned
    assert_close(got, grads(rule), atol=1e-10)


@pytest.mark.parametrize("name", networks.OWN_NETWORKS)
def test_how_the_chain_is_cut_changes_nothing(name: str) -> None:
    network, ways = networks.OWN_NETWORKS[name]
    for make in ways.values():
        found = []
        for blocks in (1, 2, 3):
            torch.manual_seed(0)
            case = network(blocks=blocks)
            rule = make(case.blocks)
            torch.manual_seed(1)
            rule.backward(case.x, case.y)
            found.append([p.grad for p in case.model.parameters()])
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_inference_is_a_chain_of_steps() -> None:
    """From noise, or from its mean; with the seed it is the same again."""
    x = torch.randn(4, 1, 8, 8)
    for noise in (0.0, 1.0):
        torch.manual_seed(0)
        net = models.noprop_cnn((1, 8, 8), 3, steps=4, channels=2, width=6, noise=noise).eval()
        torch.manual_seed(1)
        got = net(x)
        torch.manual_seed(1)
        z = noise * torch.randn(4, 3)
        for t, d in enumerate(net[:-1], 1):
            a, b, c = posterior(cosine_signal(t - 1, 4), cosine_signal(t, 4))
            z = a * d.estimate(d.features(x), z) + b * z
            if noise:
                z = z + math.sqrt(c) * torch.randn(4, 3)
        torch.testing.assert_close(got, net[-1](z))
        torch.manual_seed(1)
        assert torch.equal(net(x), got)
        torch.manual_seed(2)
        assert torch.equal(net(x), got) == (noise == 0)


def test_shares_are_of_equal_probability() -> None:
    """ln sigma ~ N(-1.2, 1.2^2); by hand for two: the median but for the ends, exp(-1.2)."""
    levels = torch.tensor(equal_shares(5, -1.2, 1.2)).double()
    assert (levels[0], levels[-1]) == (80, torch.tensor(0.002).double())
    p = torch.special.ndtr((levels.log() + 1.2) / 1.2)
    torch.testing.assert_close(p[:-1] - p[1:], (p[0] - p[-1]).expand(5) / 5, atol=1e-7, rtol=0)
    assert equal_shares(2, -1.2, 1.2)[1] == pytest.approx(math.exp(-1.2), rel=1e-3)


@pytest.mark.parametrize("overlap", [0.0, 0.1])
def test_levels_are_of_the_share(overlap: float) -> None:
    net = models.diffusion_vit((1, 4, 4), 3, steps=3, layers=1, patch=2, width=8, heads=2)
    rule = rules.DiffusionBlocks(Blocks(net), overlap)
    for d in net[:-1]:
        (_, high), (_, low) = d.before, d.after
        alpha = (high / low) ** overlap
        found = rule.levels(d, torch.zeros(4000, 3)).log()
        ends = math.log(max(low / alpha, 0.002)), math.log(min(high * alpha, 80))
        assert ends[0] - 1e-5 <= found.min() < found.max() <= ends[1] + 1e-5
        # The middle of its probability is that of the draws.
        p = torch.special.ndtr((torch.tensor(ends) + 1.2) / 1.2)
        middle = torch.special.ndtri(p.mean()) * 1.2 - 1.2
        assert (found < middle).float().mean() == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("squared", [False, True])
def test_golden_diffusion_blocks(squared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two classes, label 0, so u = (1, 0); noise (1, 2); sigma = 1.2 and s = 0.5, so n = 1.3; of F
    nothing but its last bias, (13/202.8, 0), is left; the readout is the identity.

    z = u + 1.2 (1, 2) = (2.2, 2.4); D = 0.25/1.69 z + 0.6/1.3 (13/202.8, 0)
        = (0.55/1.69 + 0.05/1.69, 0.6/1.69) = 0.6/1.69 (1, 1), so p = (1/2, 1/2); w = 1.69/0.36
    Cross entropy: w ln 2; with respect to the scores w (-1/2, 1/2), so
        readout:    dW = w (-1/2, 1/2)^T 0.6/1.69 (1, 1) = (-5/6, 5/6)^T (1, 1)
        last bias:  w 0.6/1.3 (-1/2, 1/2) = (-13/12, 13/12)
    Squared error: (-1/2, 1/2), w/4; with respect to the scores w (-1/4, 1/4), half of that.
    """
    net = models.diffusion_vit((1, 2, 2), 2, steps=1, layers=1, patch=1, width=4, heads=1).double()
    denoiser, readout = net
    with torch.no_grad():
        denoiser.out[-1].weight.zero_()
        denoiser.out[-1].bias.copy_(torch.tensor([13 / 202.8, 0], dtype=torch.float64))
    rule = rules.DiffusionBlocks(Blocks([denoiser, readout]), squared=squared)
    monkeypatch.setattr(torch, "randn_like", lambda u: torch.tensor([1.0, 2.0]).expand_as(u))
    monkeypatch.setattr(rule, "levels", lambda d, u: torch.full_like(u[:, :1], 1.2))
    report = rule.backward(torch.randn(3, 1, 2, 2).double(), torch.tensor([0, 0, 0]))
    w, half = 1.69 / 0.36, torch.tensor([-0.5, 0.5]).double() * (0.5 if squared else 1.0)
    expected = w / 4 if squared else w * math.log(2)
    assert report.local_losses[0].item() == pytest.approx(expected, rel=1e-12)
    weight = torch.outer(half, torch.full_like(half, 5 / 3))
    torch.testing.assert_close(denoiser.readout.weight.grad, weight, atol=1e-12, rtol=0)
    torch.testing.assert_close(denoiser.readout.bias.grad, w * half, atol=1e-12, rtol=0)
    torch.testing.assert_close(denoiser.out[-1].bias.grad, 13 / 6 * half, atol=1e-12, rtol=0)


@pytest.mark.parametrize("squared", [False, True])
def test_diffusion_blocks_against_a_naive_implementation(squared: bool) -> None:
    case = networks.diffusion_vit(torch.float64)
    rule = rules.DiffusionBlocks(case.blocks, squared=squared)
    torch.manual_seed(3)
    rule.backward(case.x, case.y)
    got = grads(rule)
    rule.zero_grad()
    torch.manual_seed(3)
    *denoisers, readout = [m for block in rule.blocks for m in block]
    u = torch.eye(3).double()[case.y]
    total = torch.zeros(()).double()
    for d in denoisers:
        sigma = rule.levels(d, u)
        scores = d.scores(d.features(case.x), u + sigma * torch.randn_like(u), sigma)
        for b, p in enumerate(scores.softmax(1)):
            weight = 1 / 0.5**2 + 1 / float(sigma[b]) ** 2
            wrong = ((p - u[b]) ** 2).sum() / 2 if squared else -p[case.y[b]].log()
            total = total + weight * wrong / 6
    z = u + 0.002 * torch.randn_like(u)
    (total + F.cross_entropy(readout(z), case.y)).backward()
    assert_close(got, grads(rule), atol=1e-9)


def test_steps_of_euler() -> None:
    """z + (sigma' - sigma) (z - u) / sigma, with u the mean of the labels' vectors."""
    net = models.diffusion_vit((1, 4, 4), 3, steps=3, layers=1, patch=2, width=8, heads=2)
    net = net.double().eval()
    x, z = torch.randn(2, 1, 4, 4).double(), torch.randn(2, 3).double()
    middle = net[1]
    (_, before), (_, after) = middle.before, middle.after
    features = middle.features(x)
    p = middle.scores(features, z, torch.full((2, 1), before).double()).softmax(1)
    u = sum(p[:, c : c + 1] * torch.eye(3).double()[c] for c in range(3))
    h = middle(torch.cat([x.flatten(1), z], 1))
    torch.testing.assert_close(h[:, :16], x.flatten(1), rtol=0, atol=0)
    torch.testing.assert_close(h[:, 16:], z + (after - before) * (z - u) / before)


def test_limits_of_a_denoiser() -> None:
    """Without noise D is z itself; and who knows the label leaves u_y + sigma' eps of
    u_y + sigma eps."""
    net = models.diffusion_vit((1, 4, 4), 3, steps=3, layers=1, patch=2, width=8, heads=2)
    middle = net.double()[1]
    x, eps = torch.randn(2, 1, 4, 4).double(), torch.randn(2, 3).double()
    almost = middle.scores(middle.features(x), eps, torch.full((2, 1), 1e-12).double())
    torch.testing.assert_close(almost, eps, atol=1e-10, rtol=0)
    u = torch.eye(3).double()[[1, 1]]
    with torch.no_grad():
        middle.readout.bias.copy_(1e4 * u[0])
    h = middle(torch.cat([x.flatten(1), u + middle.before[1] * eps], 1))
    torch.testing.assert_close(h[:, 16:], u + middle.after[1] * eps, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", networks.OWN_NETWORKS)
def test_it_learns_and_other_rules_train_the_network_too(name: str) -> None:
    network, ways = networks.OWN_NETWORKS[name]
    case = network()
    for rule in (
        next(iter(ways.values()))(case.blocks),
        rules.Backprop(case.blocks),
        rules.DGL(case.blocks, head=networks.SMALL_HEAD),
    ):
        other = copy.deepcopy(rule)
        optimizer = torch.optim.AdamW(other.parameters(), 0.02)
        losses = []
        for _ in range(10):
            optimizer.zero_grad()
            losses.append(other.backward(case.x, case.y).loss)
            optimizer.step()
        assert losses[-1] < losses[0]


def test_stages_of_a_process_each() -> None:
    """No more than forward information, but where vectors are learned from every block's loss."""
    case = networks.noprop_cnn()
    check_rule(rules.NoProp(case.blocks), 2)
    with pytest.raises(InputError, match="NoProp needs forward and readout information"):
        check_rule(rules.NoProp(case.blocks, learned=True), 2)


def test_bad_input() -> None:
    blocks = networks.noprop_cnn().blocks
    with pytest.raises(InputError, match=r"NoProp\(eta=0\): give more than 0"):
        rules.NoProp(blocks, eta=0)
    for make, remedy in ((rules.NoProp, "noprop_cnn"), (rules.DiffusionBlocks, "diffusion_vit")):
        for wrong in (networks.mlp().blocks, Blocks(list(blocks)[:-1])):
            with pytest.raises(InputError, match=rf"take models\.{remedy}") as e:
                make(wrong)
            assert "\n" not in str(e.value)
    with pytest.raises(InputError, match=r"take models\.diffusion_vit"):
        rules.DiffusionBlocks(blocks)
    with pytest.raises(InputError, match=r"DiffusionBlocks\(overlap=-1\)"):
        rules.DiffusionBlocks(networks.diffusion_vit().blocks, overlap=-1)
    with pytest.raises(InputError, match=r"noprop_cnn\(steps=0"):
        models.noprop_cnn(steps=0)
    with pytest.raises(InputError, match=r"diffusion_vit\(patch=5\): 32x32 images"):
        models.diffusion_vit(patch=5)
    with pytest.raises(InputError, match=r"diffusion_vit\(.*heads=3.* heads divide"):
        models.diffusion_vit(heads=3)


@pytest.mark.parametrize("blocks", ["all", 2])
def test_cut(blocks: int | str) -> None:
    """Cuts fall between the modules by themselves: within one, the image and the latent cross."""
    net = models.noprop_cnn((1, 8, 8), 3, steps=4, channels=2, width=6)
    x = torch.randn(4, 1, 8, 8)
    chain = cut(net, blocks=blocks, example=x)
    rule = rules.NoProp(chain)
    rule.backward(x, torch.tensor([0, 1, 2, 0]))
    assert all(p.grad is not None for p in net.parameters())
