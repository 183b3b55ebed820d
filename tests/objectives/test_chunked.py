"""The loss of a large vocabulary in chunks: the same numbers, and the scores never at once."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import layerwise as lw
from layerwise import Batch, Blocks, heads, models, objectives, rules
from layerwise.blocks.cost import saved
from layerwise.costs.live_bytes import LiveBytes
from layerwise.objectives import Activity, Classify, Site, cross_entropy
from layerwise.runs.metrics import Metrics

pytestmark = pytest.mark.skipif(
    not hasattr(F, "linear_cross_entropy"), reason="PyTorch before 2.14 has no such loss"
)
TOKENS, FEATURES, CLASSES = 7, 6, 50
CHUNKED = pytest.mark.parametrize("head", [heads.Linear(), heads.MLP(width=9)], ids=str)


def placed(
    head: heads.Head,
    chunk_above: int | None,
    classes: int = CLASSES,
    tokens: int = TOKENS,
    features: int = FEATURES,
    **options: object,
) -> Classify:
    torch.manual_seed(1)
    objective = Classify(head, chunk_above=chunk_above, **options)
    shape = (tokens, features)
    objective.place(Site(0, 2, shape, shape, (tokens,), (tokens, classes)))
    return objective


def learned(
    objective: Classify, h: Tensor, y: Tensor
) -> tuple[Tensor, list[Tensor], Tensor | None]:
    h, batch = h.detach().requires_grad_(), Batch(h, y)
    loss, scores = objective.loss_and_scores(Activity(h), batch)
    loss.backward()
    return loss.detach(), [h.grad, *(p.grad for p in objective.parameters())], scores


@CHUNKED
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ignored", [0, 3, TOKENS])
def test_values(head: heads.Head, smoothing: float, ignored: int) -> None:
    """Loss and gradients are those of the whole scores, and of plain PyTorch."""
    h, y = torch.randn(4, TOKENS, FEATURES).double(), torch.randint(0, CLASSES, (4, TOKENS))
    y[:, :ignored] = -100
    criterion = functools.partial(cross_entropy, label_smoothing=smoothing)
    whole = placed(head, None, criterion=criterion).double()
    chunked = placed(head, CLASSES - 1, criterion=criterion).double()
    wanted, gradients, scores = learned(whole, h, y)
    got, others, quiet = learned(chunked, h, y)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(others, gradients)
    assert scores is not None
    assert quiet is None
    if ignored == TOKENS:
        assert got == 0
        assert not any(g.any() for g in others)
    else:
        scores = chunked.predict(h).flatten(0, 1)
        plain = F.cross_entropy(scores, y.flatten(), label_smoothing=smoothing)
        torch.testing.assert_close(got, plain.detach())


def test_far_fewer_bytes_are_saved() -> None:
    """1024 tokens of 64 features and 16384 classes: the scores alone are 64 MiB, and so are their
    logarithms and their gradient. In chunks the gradients of features and weights are kept, 4.25
    MiB, and what the hidden layer keeps."""
    h, y = torch.randn(4, 256, 64, requires_grad=True), torch.randint(0, 16384, (4, 256))
    kept, peak = {}, {}
    for chunk_above in (None, 8192):
        objective = placed(heads.MLP(width=64), chunk_above, 16384, 256, 64)
        with saved(objective) as found, LiveBytes() as live:
            loss = objective(Activity(h), Batch(h, y))
            kept[chunk_above] = max(found.bytes, live.now)
            loss.backward()
        peak[chunk_above] = live.peak().bytes
    scores = 4 * 1024 * 16384
    assert kept[None] >= scores
    assert peak[None] >= 2 * scores
    assert kept[8192] < scores / 8
    assert peak[8192] < scores / 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(dtype: torch.dtype) -> None:
    h, y = torch.randn(4, TOKENS, FEATURES), torch.randint(0, CLASSES, (4, TOKENS))
    y[0] = -100
    results = []
    for chunk_above in (None, 1):
        objective = placed(heads.Linear(), chunk_above)
        with torch.autocast("cpu", dtype):
            loss, gradients, _ = learned(objective, h, y)
        assert all(g.dtype == torch.float32 for g in gradients)
        results.append((loss, gradients))
    (loss, gradients), (other, others) = results
    assert other.dtype == torch.float32
    torch.testing.assert_close(other, loss, atol=1e-2, rtol=0)
    torch.testing.assert_close(others, gradients, atol=5e-3, rtol=0)


def test_what_is_computed_at_once() -> None:
    """Few classes, one label for each sample, soft labels, another criterion, no gradients, a head
    that does not end in a plain linear layer."""
    h, y = torch.randn(4, TOKENS, FEATURES), torch.randint(0, CLASSES, (4, TOKENS))

    def whole(objective: Classify, h: Tensor = h, y: Tensor = y) -> bool:
        return objective._chunked(h, y) is None

    assert not whole(placed(heads.Linear(), CLASSES - 1))
    assert whole(placed(heads.Linear(), CLASSES))
    assert whole(placed(heads.Linear(), 8192))
    assert whole(placed(heads.Linear(), None))
    assert whole(placed(heads.Linear(), 1, criterion=lambda z, y: z.sum()))
    assert whole(placed(heads.Linear(), 1), y=F.one_hot(y, CLASSES).float())
    assert whole(placed(heads.Linear(), 1), h[:, 0], y[:, 0])
    with torch.no_grad():
        assert whole(placed(heads.Linear(), 1))
    hooked = placed(heads.Linear(), 1)
    hooked.head[-1].register_forward_hook(lambda *_: None)
    assert whole(hooked)
    normed = placed(heads.Linear(), 1)
    nn.utils.parametrizations.weight_norm(normed.head[-1])
    assert whole(normed)
    pooled = Classify(heads.Linear(), chunk_above=1)
    pooled.place(Site(0, 2, (TOKENS, FEATURES), (TOKENS, FEATURES), (TOKENS,), (CLASSES,)))
    assert whole(pooled, y=y[:, 0])


def test_without_pytorchs_loss_it_is_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    h, y = torch.randn(4, TOKENS, FEATURES), torch.randint(0, CLASSES, (4, TOKENS))
    monkeypatch.delattr(F, "linear_cross_entropy")
    wanted, gradients, _ = learned(placed(heads.Linear(), None), h, y)
    got, others, _ = learned(placed(heads.Linear(), 1), h, y)
    assert torch.equal(got, wanted)
    assert all(torch.equal(a, b) for a, b in zip(others, gradients, strict=True))


def language(classes: int = CLASSES) -> tuple[Blocks, Tensor, Tensor]:
    parts = [
        nn.Sequential(nn.Embedding(classes, FEATURES), nn.Linear(FEATURES, FEATURES), nn.Tanh()),
        nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Tanh()),
        nn.Linear(FEATURES, classes),
    ]
    x, y = (torch.randint(0, classes, (4, TOKENS)) for _ in range(2))
    return Blocks(parts, example=x), x, y


def stepped(make: object, chunk_above: int | None) -> tuple[dict[str, Tensor], object]:
    torch.manual_seed(0)
    blocks, x, y = language()
    rule = make(blocks)
    for part in rule.modules():
        if isinstance(part, Classify) and part.chunk_above is not None:
            part.chunk_above = chunk_above
    torch.manual_seed(1)
    report = rule.backward(x, y, scale=lambda loss: 3 * loss)
    return {n: p.grad for n, p in rule.named_parameters() if p.grad is not None}, report


HEADED = {
    "DGL": rules.DGL,
    "DeepSupervision": rules.DeepSupervision,
    "DirectGlobal": rules.DirectGlobal,
    "LocalCritic": rules.LocalCritic,
    "MAN": rules.MAN,
    "SGR": rules.SGR,
    "AugLocal": rules.AugLocal,
    "HPFF": lambda b: rules.HPFF(b, Classify(heads.Linear()), independent=0.5),
    "Greedy": lambda b: rules.Greedy(b, 0.5 * Classify(heads.Linear())),
    "LocalForwardGradient": lambda b: rules.LocalForwardGradient(b, Classify(heads.Linear())),
    "weights": lambda b: rules.LocalForwardGradient(b, Classify(heads.Linear()), weights=True),
}


@pytest.mark.parametrize("name", HEADED)
def test_rules_learn_the_same(name: str) -> None:
    wanted, _ = stepped(HEADED[name], None)
    got, report = stepped(HEADED[name], 1)
    assert got.keys() == wanted.keys()
    for key, gradient in wanted.items():
        torch.testing.assert_close(got[key], gradient, atol=1e-6, rtol=1e-5)
    if name in ("DGL", "DeepSupervision", "Greedy"):
        assert report.local_logits[0] is None
        assert report.local_losses[0].isfinite()
        assert (report.local_logits[-1] is not None) == (name == "DeepSupervision")


def test_a_block_without_scores_has_no_accuracy() -> None:
    blocks, x, y = language()
    rule = rules.Greedy(blocks, Classify(heads.Linear(), chunk_above=1))
    report = rule.backward(x, y)
    metrics = Metrics(3)
    metrics.add(report.local_losses, report.local_logits, report.labels)
    assert metrics.accuracies()[:2] == [None, None]
    assert metrics.accuracies()[2] is not None
    assert None not in metrics.losses()
    assert all(scores is not None for scores in rule.exits(x))


def test_small_vocabularies_keep_their_bits() -> None:
    results = []
    for objective in (Classify(heads.Linear()), Classify(heads.Linear(), chunk_above=None)):
        torch.manual_seed(0)
        blocks, x, y = language()
        rule = rules.Greedy(blocks, copy.deepcopy(objective))
        rule.backward(x, y)
        results.append([p.grad for p in rule.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert objectives.Classify().chunk_above == 8192


@pytest.mark.parametrize("make", [rules.Backprop, rules.DGL])
def test_the_networks_own_classifier(make: type) -> None:
    """The gradients of the whole scores; they never exist at once, and the network still gives
    them."""
    torch.manual_seed(0)
    network = models.gpt(shape=(8,), num_classes=50, layers=1, width=8, heads=2)
    x, y = torch.randint(50, (2, 3, 8))
    found = []
    for chunk_above in (None, 20):
        torch.manual_seed(1)
        rule = make(lw.cut(copy.deepcopy(network), blocks=2, example=x))
        rule.objectives[1].chunk_above = chunk_above
        report = rule.backward(x, y)
        found.append((report, {n: p.grad for n, p in rule.blocks.named_parameters()}))
        assert rule(x).shape == (3, 8, 50)
    (whole, wanted), (report, got) = found
    torch.testing.assert_close(report.loss, whole.loss)
    torch.testing.assert_close(got, wanted)
    assert report.logits.isnan().all()
    assert report.local_logits[1] is None
