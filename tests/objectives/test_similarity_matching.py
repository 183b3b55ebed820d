"""SimilarityMatching and PredictProjection: the equations, and what they refuse."""

from __future__ import annotations

import math

import networks
import pytest
import torch
from networks import assert_close, grads
from torch import Tensor, nn

from layerwise import Batch, Blocks, InputError, heads, rules
from layerwise.heads.head import fewer_positions
from layerwise.objectives import Activity, PredictProjection, SimilarityMatching, Site

F64 = torch.float64


def _vectors(objective: object, x: Tensor, classes: int = 3) -> rules.Greedy:
    """One linear block without bias, weight 1; its output is x."""
    features = x.shape[1]
    parts = [nn.Linear(features, features, bias=False), nn.Linear(features, classes)]
    rule = rules.Greedy(Blocks([p.double() for p in parts], example=x), objective)  # type: ignore
    nn.init.eye_(rule.blocks[0].weight)  # type: ignore[arg-type]
    return rule


def test_one_step_by_hand() -> None:
    """h1 = (1, 0, 0) of class 0 and h2 = (1, 1, 0) of class 1, of three classes.

    Centred, times 3: (2, -1, -1) and (1, 1, -2), both of length sqrt 6: s = (2 - 1 + 2) / 6 = 1/2.
    The labels', (2, -1, -1) and (-1, 2, -1): -3 / 6 = -1/2.

        loss      (0 + 1 + 1 + 0) / 4 = 1/2;  d/ds = 2 (2 * 1) / 4 = 1
        d/dh1     (u2 - s u1) / |h1| = (0, 3/2, -3/2) / sqrt 6 / (sqrt 6 / 3) = (0, 3/4, -3/4)
        d/dh2     (u1 - s u2) / |h2| = (3/4, -3/4, 0)
        d/dW      sum of d/dh x^T: columns d/dh1 + d/dh2, d/dh2, 0
    """
    x = torch.tensor([[1.0, 0, 0], [1, 1, 0]], dtype=F64)
    rule = _vectors(SimilarityMatching(convolve=False), x)
    report = rule.backward(x, torch.tensor([0, 1]))
    assert report.local_losses[0].item() == pytest.approx(0.5, abs=1e-7)  # 1e-8 beside lengths
    assert report.local_logits[0] is None
    wanted = torch.tensor([[0.75, 0.75, 0], [0, -0.75, 0], [-0.75, 0, 0]], dtype=F64)
    torch.testing.assert_close(rule.blocks[0].weight.grad, wanted, atol=1e-7, rtol=0)


def _similarity(vectors: list[list[float]]) -> list[list[float]]:
    """Cosines of centred vectors, number by number."""
    centred = [[v - sum(vector) / len(vector) for v in vector] for vector in vectors]
    lengths = [1e-8 + math.sqrt(sum(v * v for v in vector)) for vector in centred]
    return [
        [sum(p * q for p, q in zip(a, b, strict=True)) / (m * n) for b, n in zip(centred, lengths)]  # noqa: B905
        for a, m in zip(centred, lengths, strict=True)
    ]


def _convolved(x: Tensor, weight: Tensor) -> list[list[list[float]]]:
    """For each sample and output channel its values at all positions, one at a time."""
    batch, _, height, width = x.shape
    padded = torch.zeros(batch, x.shape[1], height + 2, width + 2, dtype=x.dtype)
    padded[:, :, 1:-1, 1:-1] = x
    return [
        [
            [
                (padded[n, :, i : i + 3, j : j + 3] * kernel).sum().item()
                for i in range(height)
                for j in range(width)
            ]
            for kernel in weight
        ]
        for n in range(batch)
    ]


def _std(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


@pytest.mark.parametrize("channels", [3, 5])
@pytest.mark.parametrize("projection", [None, 4])
def test_naive(channels: int, projection: int | None) -> None:
    """Before the pooling; by standard deviations where there are more than three channels."""
    x, y = torch.randn(4, 2, 4, 4, dtype=F64), torch.tensor([0, 2, 0, 1])
    first = nn.Sequential(nn.Conv2d(2, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    last = nn.Sequential(nn.Flatten(), nn.Linear(4 * channels, 3))
    blocks = Blocks([first.double(), last.double()], example=x)
    rule = rules.Greedy(blocks, SimilarityMatching(projection=projection))
    report = rule.backward(x, y)
    objective = rule.objectives[0]
    (convolution,) = objective.network
    assert convolution.weight.shape == (channels, channels, 3, 3)
    maps = _convolved(first[:2](x).detach(), convolution.weight.detach())
    if channels > 3:
        features = [[_std(channel) for channel in sample] for sample in maps]
    else:
        features = [[v for channel in sample for v in channel] for sample in maps]
    got = _similarity(features)
    codes = torch.eye(3, dtype=F64) if projection is None else objective.codes
    wanted = _similarity([codes[label].tolist() for label in y])
    pairs = [
        (a - b) ** 2 for s, t in zip(got, wanted, strict=True) for a, b in zip(s, t, strict=True)
    ]
    assert report.local_losses[0].item() == pytest.approx(sum(pairs) / 16, rel=1e-12)


def test_without_weight_transport() -> None:
    """Nothing of the loss is trained: pooled maps, and projected labels that stay."""
    case = networks.cnn()
    rule = rules.Greedy(case.blocks, SimilarityMatching(convolve=False, features=8, projection=7))
    assert [n for n, _ in rule.named_parameters() if n.startswith("objectives.0")] == []
    assert rule.objectives[0].codes.shape == (3, 7)
    assert "objectives.0.codes" in rule.state_dict()
    rule.backward(case.x, case.y)
    shape = rule.objectives[0].site.unpooled_shape
    (pool,) = rule.objectives[0].network
    assert pool.output_size == fewer_positions(shape, 8)[1:]


@pytest.mark.parametrize(
    ("shape", "features", "wanted"),
    [
        ((128, 32, 32), 2048, (4, 4)),  # VGG8b
        ((256, 32, 32), 2048, (2, 4)),  # the height first
        ((256, 16, 16), 2048, (2, 4)),
        ((512, 8, 8), 2048, (2, 2)),
        ((512, 2, 2), 2048, (2, 2)),
        ((512, 7, 7), 4096, (2, 4)),  # rounded up
        ((64, 4, 4), 10, (1, 1)),
    ],
)
def test_fewer_positions(
    shape: tuple[int, int, int], features: int, wanted: tuple[int, int]
) -> None:
    assert fewer_positions(shape, features) == (shape[0], *wanted)
    head = heads.Linear(features=features)(shape, (10,))
    assert head[-1].in_features == shape[0] * wanted[0] * wanted[1]
    x = torch.randn(2, *shape)
    maps = nn.functional.adaptive_avg_pool2d(x, wanted).flatten(1)
    assert torch.equal(head(x), head[-1](maps))


def _projected(feedback_alignment: bool) -> tuple[rules.Greedy, Tensor]:
    """h = (1, 2); W = 0 and b = 0; class 0's code is (1, 0); B = ((1, 2), (3, 4))."""
    x = torch.tensor([[1.0, 2.0]], dtype=F64)
    objective = PredictProjection(projection=2, feedback_alignment=feedback_alignment)
    rule = _vectors(objective, x)
    made = rule.objectives[0]
    for p in made.parameters():
        nn.init.zeros_(p)
    made.codes.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1]]))
    if feedback_alignment:
        made.feedback.copy_(torch.tensor([[1.0, 2], [3, 4]]))
    return rule, x


def test_projection_by_hand() -> None:
    """z = 0, so p = 1/2 and the loss is log 2. d/dz = (p - code) / 2 = (-1/4, 1/4);
    d/dh = B^T d/dz = (-1/4 + 3/4, -1/2 + 1) = (1/2, 1/2); d/dW = d/dz h^T."""
    rule, x = _projected(True)
    report = rule.backward(x, torch.tensor([0]))
    assert report.local_losses[0].item() == pytest.approx(math.log(2), rel=1e-14)
    assert rule.blocks[0].weight.grad.tolist() == [[0.5, 1.0], [0.5, 1.0]]
    linear = rule.objectives[0].linear
    assert linear.weight.grad.tolist() == [[-0.25, -0.5], [0.25, 0.5]]
    assert linear.bias.grad.tolist() == [-0.25, 0.25]


def test_scores_are_log_likelihoods_of_codes() -> None:
    rule, x = _projected(True)
    linear = rule.objectives[0].linear
    linear.bias.data = torch.tensor([2.0, -1.0], dtype=F64)
    scores = rule.exits(x)[0]
    z = linear.bias
    bits = torch.distributions.Bernoulli(logits=z)
    likelihood = [bits.log_prob(code.double()).sum() for code in rule.objectives[0].codes]
    torch.testing.assert_close(scores[0].log_softmax(0), torch.stack(likelihood).log_softmax(0))
    assert torch.equal(rule.backward(x, torch.tensor([0])).local_logits[0], scores)


def test_feedback_of_its_own_weights_is_backpropagation() -> None:
    """B = W: the same gradients, 1e-12 in float64."""
    case = networks.cnn(F64)
    rule = rules.Greedy(case.blocks, PredictProjection(projection=9, features=16))
    for objective in list(rule.objectives.children())[:-1]:
        objective.feedback = objective.linear.weight.detach().clone()
    rule.backward(case.x, case.y)
    got = grads(rule)
    for objective in list(rule.objectives.children())[:-1]:
        objective.feedback_alignment = False
    rule.zero_grad()
    rule.backward(case.x, case.y)
    assert_close(got, grads(rule))


def test_tokens_and_vectors() -> None:
    """Of tokens the spread over positions; of vectors the values."""
    for name, features in (("transformer", 8), ("mlp", 5)):
        case = networks.NETWORKS[name](F64)
        rule = rules.Greedy(case.blocks, SimilarityMatching())
        objective = rule.objectives[1]
        assert objective.network[0].weight.shape == (features, features)
        with torch.no_grad():
            h = case.blocks[1](case.blocks[0](case.x))
            z = objective.network(h)
            z = z.std(1) if name == "transformer" else z
            z = nn.functional.normalize(z - z.mean(1, keepdim=True))
            y = nn.functional.normalize(torch.eye(3, dtype=F64)[case.y] - 1 / 3)
            wanted = (z @ z.T - y @ y.T).square().mean()
            got = objective(Activity(h), Batch(case.x, case.y))
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-8)


def test_a_dead_sample_has_a_finite_gradient() -> None:
    h = torch.zeros(3, 5, 4, 4, requires_grad=True)
    objective = SimilarityMatching(before_pooling=False)
    objective.place(Site(0, 2, (5, 4, 4), (5, 4, 4), (1, 8, 8), (3,)))
    objective(Activity(h), Batch(h, torch.tensor([0, 1, 2]))).backward()
    assert h.grad.isfinite().all()


TOKENS = Site(0, 2, (7, 5), (7, 5), (3, 8, 8), (7, 3))
REFUSED = {
    "features": (lambda: SimilarityMatching(features=0), r"SimilarityMatching\(features=0\)"),
    "projection": (lambda: PredictProjection(projection=0), r"PredictProjection\(projection=0\)"),
    "tokens": (
        lambda: SimilarityMatching().place(TOKENS),
        r"\(7, 3\) for each sample",
    ),
    "codes of tokens": (
        lambda: PredictProjection().place(TOKENS),
        r"\(7, 3\) .* one label for each whole",
    ),
}


@pytest.mark.parametrize("asked", REFUSED)
def test_refusals_are_one_line(asked: str) -> None:
    call, message = REFUSED[asked]
    with pytest.raises(InputError, match=message) as e:
        call()
    assert "\n" not in str(e.value)
