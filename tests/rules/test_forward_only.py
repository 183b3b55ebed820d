"""Forward-Forward and PEPITA: golden values, limits, naive implementations, what reaches whom."""

from __future__ import annotations

import copy
import itertools
import math

import networks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, assert_close, assert_same, grads
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise import Blocks, rules
from layerwise.analysis.frozen import outputs
from layerwise.errors import InputError
from layerwise.rules.families.goodness import EPS
from layerwise.rules.families.label_embedding import LabelPixels, LabelWaves
from layerwise.runtime.layer_parallel import check_rule

LN2, LN3, LN4 = math.log(2), math.log(3), math.log(4)


def _linear(weight: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
    return layer


def _is(got: Tensor, wanted: object) -> None:
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), atol=1e-7, rtol=0)


@pytest.mark.parametrize("mean", [True, False])
def test_forward_forward_golden(mean: bool) -> None:
    """One sample of class 0 of 2, so that the wrong label is 1, and r = sqrt(2) beside the label.

    The inputs (1, 0, r) and (0, 1, r) have a mean square of 1: N leaves them. W_1 doubles labels:
    h+ = (2, 0), h- = (0, 2), both with a mean square of 2, so with threshold 2 - ln 3 the odds are
    3 for both: L = (softplus(-ln 3) + softplus(ln 3)) / 2 = (ln(4/3) + ln 4) / 2.

        dh+ = -(1/4) (1/2) h+ = (-1/4, 0)        dg/dh = h, and (1/2) for the mean of both
        dh- =  (3/4) (1/2) h- = (0, 3/4)
        dW_1 = dh+ (1, 0, r) + dh- (0, 1, r)

    As sums: half the threshold's excess over 2 gives the same odds from twice the gradient.
    The neutral input (1/2, 1/2, r) gives h in the direction (1, 1) and N(h) = (1, 1). W_2 = 0
    gives both classes 1/2: dW_2 = (-1/2, 1/2)^T (1, 1).
    """
    r = math.sqrt(2)
    blocks = Blocks(
        [_linear([[2, 0, 0], [0, 2, 0]]), _linear([[0, 0], [0, 0]])], torch.ones(1, 3).double()
    )
    threshold = 2 - (LN3 if mean else LN3 / 2)
    rule = rules.ForwardForward(blocks, threshold, mean=mean)
    report = rule.backward(torch.tensor([[7, 7, r]]).double(), torch.tensor([0]))
    factor = 1 if mean else 2
    _is(blocks[0].weight.grad / factor, [[-1 / 4, 0, -r / 4], [0, 3 / 4, 3 * r / 4]])
    _is(blocks[1].weight.grad, [[-1 / 2, -1 / 2], [1 / 2, 1 / 2]])
    _is(report.local_losses[0], (LN4 - LN3 + LN4) / 2)
    _is(report.loss, LN2)
    _is(report.logits, [[0, 0]])


def _naive_normalized(h: Tensor) -> Tensor:
    return torch.stack([one / (one.square().mean() + EPS).sqrt() for one in h])


@st.composite
def _dense(draw: st.DrawFn) -> tuple[list[nn.Module], Tensor, Tensor]:
    """2 to 4 blocks of linear and tanh, over 2 to 4 classes."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    classes, depth = draw(st.integers(2, 4)), draw(st.integers(2, 4))
    widths = [draw(st.integers(classes, 7))] + [draw(st.integers(2, 5)) for _ in range(depth - 1)]
    parts: list[nn.Module] = [
        nn.Sequential(nn.Linear(a, b), nn.Tanh()).double() for a, b in itertools.pairwise(widths)
    ]
    parts.append(nn.Linear(widths[-1], classes).double())
    batch = draw(st.integers(1, 4))
    return parts, torch.randn(batch, widths[0]).double(), torch.randint(0, classes, (batch,))


@given(_dense(), st.booleans(), st.floats(0.2, 3.0), st.floats(0.2, 3.0))
@settings(max_examples=25, deadline=None)
def test_forward_forward_naively(
    drawn: tuple[list[nn.Module], Tensor, Tensor], mean: bool, threshold: float, strength: float
) -> None:
    """Sample by sample, with log sigmoids for softplus, one graph for every label."""
    parts, x, y = drawn
    rule = rules.ForwardForward(Blocks(parts, example=x), threshold, mean=mean, strength=strength)
    shares: list[Tensor] = []
    hook = rule.embedding.register_forward_pre_hook(lambda _, given: shares.append(given[1]))
    report = rule.backward(x, y)
    hook.remove()
    got = grads(rule)
    rule.zero_grad()
    labels = torch.cat(shares)  # neutral, right, wrong
    classes = labels.shape[-1]
    assert torch.equal(labels[0], torch.full_like(labels[0], 1 / classes))
    assert torch.equal(labels[1], F.one_hot(y, classes).double())
    wrong = labels[2].argmax(1)
    assert (wrong != y).all()

    def run(c: Tensor) -> list[Tensor]:
        h, outputs = x.clone(), []
        h[:, :classes] = strength * c
        for part in parts[:-1]:
            h = part(_naive_normalized(h).detach())
            outputs.append(h)
        return outputs

    positive, negative = (
        run(F.one_hot(y, classes).double()),
        run(F.one_hot(wrong, classes).double()),
    )
    for k, (p, n) in enumerate(zip(positive, negative, strict=True)):
        loss = torch.zeros(()).double()
        for b in range(len(x)):
            units = 1 if mean else p.shape[1]
            for h, sign in ((p[b], 1), (n[b], -1)):
                odds = units * ((h * h).sum() / len(h) - threshold)
                loss = loss - F.logsigmoid(sign * odds) / (2 * len(x))
        loss.backward()
        torch.testing.assert_close(report.local_losses[k], loss.detach(), atol=1e-11, rtol=1e-11)
    neutral = run(torch.full_like(labels[0], 1 / classes))[-1]
    F.cross_entropy(parts[-1](_naive_normalized(neutral).detach()), y).backward()
    assert_close(got, grads(rule), atol=1e-11)


@pytest.mark.parametrize("network", NETWORKS)
def test_forward_forward_is_local(network: str) -> None:
    """What comes after a block does not reach it, and every block but the first has what came
    before, but for its length."""
    case = NETWORKS[network](torch.float64)
    rule = rules.ForwardForward(case.blocks)
    torch.manual_seed(1)
    rule.backward(case.x, case.y)
    wanted = [grads(block) for block in rule.blocks]
    for changed in range(1, len(rule.blocks)):
        other = copy.deepcopy(rule)
        other.zero_grad()
        with torch.no_grad():
            for i in range(changed, len(rule.blocks)):
                for p in other.blocks[i].parameters():
                    p.add_(torch.randn_like(p))
        torch.manual_seed(1)
        other.backward(case.x, case.y)
        for i in range(changed):
            assert_same(grads(other.blocks[i]), wanted[i])
        assert any(
            not torch.equal(g, wanted[changed][n]) for n, g in grads(other.blocks[changed]).items()
        )


def test_a_blocks_length_tells_the_next_nothing() -> None:
    case = networks.mlp(torch.float64)
    rule = rules.ForwardForward(case.blocks)
    torch.manual_seed(1)
    rule.backward(case.x, case.y)
    wanted = grads(rule.blocks[1])
    rule.zero_grad()
    with torch.no_grad():  # ReLU: three times the output
        for p in rule.blocks[0].parameters():
            p.mul_(3)
    torch.manual_seed(1)
    rule.backward(case.x, case.y)
    assert_close(grads(rule.blocks[1]), wanted, atol=1e-7)


@pytest.mark.parametrize("waves", [False, True])
@pytest.mark.parametrize("network", ["cnn", "transformer"])
def test_prediction_by_goodness(network: str, waves: bool) -> None:
    """Label by label, block by block; the first block does not count."""
    case = NETWORKS[network](torch.float64)
    blocks = case.blocks
    rule = rules.ForwardForward(blocks, 0.7, waves=waves, by_goodness=True, mean=False).eval()
    exits = rule.exits(case.x)
    assert exits[0] is None
    scores = torch.zeros(len(case.x), networks.CLASSES).double()
    hs = []
    for c in range(networks.CLASSES):
        share = torch.zeros(1, len(case.x), networks.CLASSES).double()
        share[..., c] = 1
        hs.append(_naive_normalized(rule.embedding(case.x, share)))
    for k in range(len(blocks) - 1):
        hs = [blocks[k](h) for h in hs]
        if k:
            squares = [h.flatten(1).square().sum(1) - 0.7 * h[0].numel() for h in hs]
            scores = scores + torch.stack(squares, 1)
            torch.testing.assert_close(exits[k], scores, atol=1e-4, rtol=1e-6)
        hs = [_naive_normalized(h) for h in hs]
    assert torch.equal(exits[-1], exits[-2])
    assert torch.equal(rule(case.x), exits[-1])
    report = rule.backward(case.x, case.y)  # the classifier's, either way
    rule.by_goodness = False
    torch.testing.assert_close(report.logits, rule(case.x))


@pytest.mark.parametrize("by_goodness", [False, True])
@pytest.mark.parametrize("network", NETWORKS)
def test_activities_are_those_of_neutral_inputs(network: str, by_goodness: bool) -> None:
    """What the blocks give at inference, with lengths; the last, what the classifier says."""
    case = NETWORKS[network](torch.float64)
    rule = rules.ForwardForward(case.blocks, by_goodness=by_goodness)
    rule.eval()
    flat = case.x.flatten(1).clone()
    flat[:, :3] = 1 / 3
    h = flat.view_as(case.x)
    for block, got in zip(case.blocks, rule.activities(case.x), strict=True):
        h = block(_naive_normalized(h))
        torch.testing.assert_close(got, h, atol=1e-12, rtol=1e-12)
    rule.by_goodness = False
    torch.testing.assert_close(got, rule(case.x), atol=1e-12, rtol=1e-12)
    # And so analyses see them.
    for a, b in zip(outputs(rule, case.x), rule.activities(case.x), strict=True):
        assert torch.equal(a, b)


def test_one_hidden_block_counts() -> None:
    case = networks.mlp(blocks=2)
    exits = rules.ForwardForward(case.blocks, by_goodness=True).exits(case.x)
    assert [e.shape for e in exits] == [(6, 3), (6, 3)]


def test_hard_negatives() -> None:
    """A classifier that is sure of class 1, or else of 2, has these drawn, the right one never."""
    parts = [nn.Linear(6, 5), nn.Linear(5, 4)]
    with torch.no_grad():
        parts[1].weight.zero_()
        parts[1].bias.copy_(torch.tensor([0.0, 200.0, 100.0, 0.0]))
    x, y = torch.randn(40, 6), torch.arange(4).repeat(10)
    rule = rules.ForwardForward(Blocks(parts, example=x), hard=True)
    shares: list[Tensor] = []
    rule.embedding.register_forward_pre_hook(lambda _, given: shares.append(given[1]))
    rule.backward(x, y)
    neutral, pair = shares  # the neutral inputs go first and alone
    assert (neutral == 1 / 4).all()
    assert pair[0].argmax(1).tolist() == y.tolist()
    assert pair[1].argmax(1).tolist() == torch.where(y == 1, 2, 1).tolist()

    shares.clear()  # 3 : 1 among the classes 2 and 3
    with torch.no_grad():
        parts[1].bias.copy_(torch.tensor([-100.0, 200.0, LN3, 0.0]))
    x, y = torch.randn(4000, 6), torch.ones(4000).long()
    rule.backward(x, y)
    drawn = shares[1][1].mean(0)
    assert drawn[0] == drawn[1] == 0
    assert drawn[2] == pytest.approx(0.75, abs=0.03)
    with pytest.raises(InputError, match="ForwardForward needs forward and error information"):
        check_rule(rule, 2)
    check_rule(rules.ForwardForward(rule.blocks), 2)


def test_uniform_negatives() -> None:
    parts = [nn.Linear(6, 5), nn.Linear(5, 4)]
    x, y = torch.randn(4000, 6), torch.ones(4000).long()
    rule = rules.ForwardForward(Blocks(parts, example=x))
    shares: list[Tensor] = []
    rule.embedding.register_forward_pre_hook(lambda _, given: shares.append(given[1]))
    rule.backward(x, y)
    drawn = shares[1][1].mean(0).tolist()
    assert drawn[1] == 0
    assert [drawn[c] for c in (0, 2, 3)] == pytest.approx([1 / 3] * 3, abs=0.03)


def test_label_pixels() -> None:
    embed = LabelPixels((2, 2, 2), 5, 3.0, "Test")
    x = torch.arange(8.0).view(1, 2, 2, 2)
    one = torch.zeros(1, 1, 5)
    one[..., 4] = 1
    assert embed(x, one).flatten().tolist() == [0, 0, 0, 0, 3, 5, 6, 7]
    neutral = embed.neutral(x).unsqueeze(0)
    torch.testing.assert_close(embed(x, neutral).flatten()[:6], torch.tensor([0.6] * 5 + [5.0]))
    last = x.repeat(3, 1, 1, 1).to(memory_format=torch.channels_last)
    out = embed(last, embed.every(last))
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert out.flatten(1)[::3, :5].tolist() == (3 * torch.eye(5)).tolist()
    assert x.flatten().tolist() == list(range(8))


def test_label_waves() -> None:
    """Of a root mean square of `strength`, orthogonal, and the longest first."""
    waves = LabelWaves((3, 8, 6), 10, 0.5, "Test").waves.flatten(1)
    torch.testing.assert_close(waves @ waves.T / 48, 0.25 * torch.eye(10), atol=1e-6, rtol=0)
    embed = LabelWaves((1, 8, 8), 2, 1.0, "Test")
    x = torch.randn(2, 1, 8, 8)
    added = embed(x, embed.every(x)) - torch.cat([x, x])
    torch.testing.assert_close(added[0], added[1])
    turn = [math.sqrt(2) * math.cos(math.pi * j / 4) for j in range(8)]
    torch.testing.assert_close(added[0, 0, 3], torch.tensor(turn))
    torch.testing.assert_close(added[2, 0, :, 3], torch.tensor(turn))


def test_forward_forward_learns() -> None:
    """Which of two values is the larger; both ways of prediction."""
    torch.manual_seed(0)
    x = torch.randn(128, 6)
    y = (x[:, 4] > x[:, 5]).long()
    parts = [nn.Sequential(nn.Linear(a, 32), nn.ReLU()) for a in (6, 32)] + [nn.Linear(32, 2)]
    rule = rules.ForwardForward(Blocks(parts, example=x))
    optimizer = torch.optim.Adam(rule.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        rule.backward(x, y)
        optimizer.step()
    for by_goodness in (False, True):
        rule.by_goodness = by_goodness
        assert (rule(x).argmax(1) == y).float().mean() > 0.85


@pytest.mark.parametrize(
    ("derivative", "first"), [(True, [[0, 0], [2, -4]]), (False, [[-1, 2], [2, -4]])]
)
def test_pepita_golden(derivative: bool, first: list[list[float]]) -> None:
    """One sample (1, 0) of class 0, W_1 = 1 before a ReLU, W_2 = 0, F = 4:

        h_1 = (1, 0),   e = (-1/2, 1/2),   x' = (1, 0) + (-2, 2) = (-1, 2),   h'_1 = (0, 2)
        grad_1 = (h_1 - h'_1) x'^T = (1, -2)^T (-1, 2)
        grad_2 = e h'_1^T

    The ReLU's derivative at a'_1 = (-1, 2) is (0, 1).
    """
    one = nn.Sequential(_linear([[1, 0], [0, 1]]), nn.ReLU(inplace=True))
    blocks = Blocks([one, _linear([[0, 0], [0, 0]])], torch.ones(1, 2).double())
    for recompute in (False, True):
        rule = rules.PEPITA(blocks, derivative=derivative, recompute=recompute)
        rule.feedback.copy_(4 * torch.eye(2))
        rule.zero_grad()
        report = rule.backward(torch.tensor([[1, 0]]).double(), torch.tensor([0]))
        _is(one[0].weight.grad, first)
        _is(blocks[1].weight.grad, [[0, -1], [0, 1]])
        _is(report.loss, LN2)
        assert report.local_losses[0] is None


@given(_dense(), st.floats(0.1, 2.0))
@settings(max_examples=25, deadline=None)
def test_pepita_naively(drawn: tuple[list[nn.Module], Tensor, Tensor], scale: float) -> None:
    """The paper's outer products, sample by sample, of h alone."""
    parts, x, y = drawn
    rule = rules.PEPITA(Blocks(parts, example=x), scale, derivative=False)
    rule.backward(x, y)
    got = [grads(part) for part in parts]
    layers = [part if isinstance(part, nn.Linear) else part[0] for part in parts]
    with torch.no_grad():
        wanted = [[torch.zeros_like(p) for p in (layer.weight, layer.bias)] for layer in layers]
        for b in range(len(x)):
            clean = [x[b]]
            for part in parts:
                clean.append(part(clean[-1]))
            e = clean[-1].softmax(0)
            e[y[b]] -= 1
            h = x[b] + sum(e[c] * rule.feedback[c] for c in range(len(e)))
            for k, part in enumerate(parts):
                after = part(h)
                change = e if k == len(parts) - 1 else clean[k + 1] - after
                wanted[k][0] += torch.outer(change, h) / len(x)
                wanted[k][1] += change / len(x)
                h = after
    for found, of_layer in zip(got, wanted, strict=True):
        for g, w in zip(found.values(), of_layer, strict=True):
            torch.testing.assert_close(g, w, atol=1e-12, rtol=0)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("derivative", [True, False])
def test_recomputing_changes_nothing(network: str, derivative: bool) -> None:
    """Not with dropout either: all passes have the same masks, and statistics move once."""
    case = NETWORKS[network](torch.float64, dropout=0.3)
    rule = rules.PEPITA(case.blocks, derivative=derivative)
    found = []
    state = copy.deepcopy(rule.state_dict())
    for recompute in (False, True):
        rule.load_state_dict(state)
        rule.recompute = recompute
        rule.zero_grad()
        torch.manual_seed(1)
        rule.backward(case.x, case.y)
        found.append((grads(rule), dict(rule.named_buffers()), torch.get_rng_state()))
        found[-1] = (found[-1][0], {n: b.clone() for n, b in found[-1][1].items()}, found[-1][2])
    assert_same(found[0][0], found[1][0])
    assert_same(found[0][1], found[1][1])
    assert torch.equal(found[0][2], found[1][2])
    plain = copy.deepcopy(case.blocks)
    plain.load_state_dict({n.removeprefix("blocks."): t for n, t in state.items() if "blocks" in n})
    torch.manual_seed(1)
    plain(case.x)
    assert torch.equal(torch.get_rng_state(), found[0][2])
    assert_same(dict(plain.named_buffers()), dict(case.blocks.named_buffers()))


def test_pepita_of_a_weak_modulation_is_direct_feedback() -> None:
    """With F = s F_0 a linear network has h_1 - h'_1 = -s e F_0 W_1^T: for s -> 0 the gradient by s
    is that of direct feedback alignment with B_1 = -F_0 W_1^T (Srinivasan et al. 2023,
    arXiv:2302.05440)."""
    parts = [nn.Linear(5, 4).double(), nn.Linear(4, 3).double()]
    x, y = torch.randn(6, 5).double(), torch.randint(3, (6,))
    blocks = Blocks(parts, example=x)
    matrix, s = torch.randn(3, 5).double(), 1e-7
    rule = rules.PEPITA(blocks)
    rule.feedback.copy_(s * matrix)
    rule.backward(x, y)
    got = {n: g / s if n.startswith("blocks.0") else g for n, g in grads(rule).items()}
    rule.zero_grad()
    direct = rules.DirectFeedbackAlignment(blocks)
    direct.feedback.get_buffer("0").copy_(-matrix @ parts[0].weight.detach().T)
    direct.backward(x, y)
    assert_close(got, grads(direct), atol=1e-6)


def test_a_derivative_of_one_is_all_the_same() -> None:
    """Without nonlinearities `derivative` changes no bit."""
    parts = [nn.Linear(5, 4), nn.Linear(4, 3)]
    x, y = torch.randn(6, 5), torch.randint(3, (6,))
    rule = rules.PEPITA(Blocks(parts, example=x))
    rule.backward(x, y)
    wanted = grads(rule)
    rule.zero_grad()
    rule.derivative = False
    rule.backward(x, y)
    assert_same(grads(rule), wanted)


def test_pepita_matrix() -> None:
    bound = 0.3 * math.sqrt(6 / 128)
    matrix = rules.PEPITA(networks.cnn().blocks, scale=0.3).feedback
    assert matrix.shape == (3, 128)
    assert 0.9 * bound < matrix.abs().max() <= bound


def test_bad_input() -> None:
    blocks = networks.mlp().blocks
    x, y = torch.randint(0, 11, (4, 6)), torch.randint(0, 3, (4,))
    tokens = [nn.Embedding(11, 6), nn.Flatten(), nn.Linear(36, 3)]
    each = [nn.Embedding(11, 6), nn.Linear(6, 11)]
    unknown = Blocks([nn.Linear(6, 3), nn.Linear(3, 3)])
    small = Blocks([nn.Linear(2, 4), nn.Linear(4, 3)], example=torch.randn(2, 2))
    waves = networks.plain_cnn().blocks
    forward, pepita = rules.ForwardForward, rules.PEPITA
    for call, wanted in {
        lambda: forward(blocks, threshold=0): r"ForwardForward\(threshold=0\): give a positive",
        lambda: forward(blocks, strength=-1): r"ForwardForward\(strength=-1\): give a positive",
        lambda: forward(unknown): r"ForwardForward\(blocks\): .* give an example",
        lambda: forward(Blocks(each, example=x)): r"gives scores of \(6, 11\)",
        lambda: forward(small): r"ForwardForward: an input of \(2,\) has no room for 3 labels",
        lambda: forward(blocks, waves=True): r"2x3 images have 1 waves, too few for 3 classes",
        lambda: forward(small, waves=True): r"not an image \(C, H, W\)",
        lambda: forward(Blocks(tokens, example=x)).backward(x, y): r"torch.int64; .* rules.DGL",
        lambda: pepita(blocks, scale=0): r"PEPITA\(scale=0\): give a positive number",
        lambda: pepita(unknown): r"PEPITA\(blocks\): .* give an example",
        lambda: pepita(Blocks(each, example=x)): r"PEPITA: the network gives scores of \(6, 11\)",
        lambda: pepita(Blocks(tokens, example=x)).backward(x, y): r"PEPITA: got a tensor of shape",
    }.items():
        with pytest.raises(InputError, match=wanted) as e:
            call()
        assert "\n" not in str(e.value)
    forward(waves, waves=True)
