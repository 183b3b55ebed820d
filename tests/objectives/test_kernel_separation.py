"""KernelSeparation: the four proxies, by hand and pair by pair."""

from __future__ import annotations

import math

import networks
import pytest
import torch
from torch import Tensor

from layerwise import Batch, InputError, rules
from layerwise.objectives import Activity, KernelSeparation, Site

ROOT = math.sqrt(0.5)
H = torch.tensor([[1.0, 0], [1, 1], [0, 1]], dtype=torch.float64)
Y = torch.tensor([0, 0, 1])

# k12 = sqrt(1/2) of one class; k13 = 0 and k23 = sqrt(1/2) of two.
BY_HAND = {
    ("alignment", 0.0, False): -ROOT,  # -k12 / sqrt(k12^2 + k23^2)
    # K* = (1, -1, -1): -(k12 - k13 - k23) / ... = 0
    ("alignment", -1.0, False): 0.0,
    ("l1", 0.0, False): 1 / 3,  # (1 - k12) + 0 + k23 = 1
    ("l1", -1.0, False): 1.0,  # (1 - k12) + 1 + (k23 + 1) = 3
    ("l2", 0.0, False): (2 - math.sqrt(2)) / 3,  # (1 - k12)^2 + 1/2 = 2 - sqrt 2
    ("contrastive", 0.0, False): math.log(2 + math.exp(-ROOT)),
    ("l1", 0.0, True): ROOT / 2,
    ("l2", 0.0, True): 0.25,
    ("contrastive", 0.0, True): math.log((1 + math.exp(ROOT)) / 2),
}


@pytest.mark.parametrize(("kind", "least", "negative_only"), BY_HAND)
def test_by_hand(kind: str, least: float, negative_only: bool) -> None:
    objective = KernelSeparation(kind, least, negative_only)  # type: ignore[arg-type]
    got = objective(Activity(H), Batch(H, Y))
    assert got.item() == pytest.approx(BY_HAND[kind, least, negative_only], abs=1e-7)


def test_gradient_by_hand() -> None:
    """l2 = ((k12 - 1)^2 + k13^2 + k23^2) / 3. With respect to h2 = (1, 1), of length sqrt 2:

    dk12 = ((1, 0) - k12 u2) / |h2| = (1/2, -1/2) / sqrt 2;  dk23 = -dk12
    2/3 (k12 - 1) dk12 + 2/3 k23 dk23 = -2/3 dk12 = (-1, 1) / (3 sqrt 2)
    """
    h = H.clone().requires_grad_()
    KernelSeparation("l2")(Activity(h), Batch(h, Y)).backward()
    wanted = torch.tensor([-1.0, 1.0], dtype=torch.float64) / (3 * math.sqrt(2))
    torch.testing.assert_close(h.grad[1], wanted, atol=1e-7, rtol=0)


def _pairs(h: Tensor, y: Tensor) -> list[tuple[float, bool]]:
    rows = [(row / row.norm()).tolist() for row in h.flatten(1)]
    return [
        (sum(a * b for a, b in zip(rows[i], rows[j], strict=True)), bool(y[i] == y[j]))
        for i in range(len(y))
        for j in range(len(y))
        if i != j
    ]


def _naive(pairs: list[tuple[float, bool]], kind: str, least: float) -> float:
    k = [value for value, _ in pairs]
    ideal = [1.0 if same else least for _, same in pairs]
    if kind == "alignment":
        product = sum(a * b for a, b in zip(k, ideal, strict=True))
        return -product / math.sqrt(sum(a * a for a in k)) / math.sqrt(sum(b * b for b in ideal))
    if kind == "contrastive":
        together = sum(math.exp(value) for value, same in pairs if same)
        return -math.log(together / sum(map(math.exp, k)))
    power = 1 if kind == "l1" else 2
    return sum(abs(a - b) ** power for a, b in zip(k, ideal, strict=True)) / len(pairs)


@pytest.mark.parametrize("least", [0.0, -1.0])
@pytest.mark.parametrize("kind", ["alignment", "l1", "l2", "contrastive"])
def test_naive(kind: str, least: float) -> None:
    """Of feature maps all values are one vector; every block by itself, without a head."""
    case = networks.plain_cnn(torch.float64)
    y = torch.tensor([0, 1, 0, 2, 1, 0])
    rule = rules.Greedy(case.blocks, KernelSeparation(kind, least))  # type: ignore[arg-type]
    report = rule.backward(case.x, y)
    assert all(n.startswith("blocks") for n, _ in rule.named_parameters())
    h = case.x
    for i, block in enumerate(list(case.blocks)[:-1]):
        with torch.no_grad():
            h = block(h)
        wanted = _naive(_pairs(h, y), kind, least)
        assert report.local_losses[i].item() == pytest.approx(wanted, rel=1e-7)


@pytest.mark.parametrize("negative_only", [False, True])
@pytest.mark.parametrize("kind", ["alignment", "l1", "l2", "contrastive"])
@pytest.mark.parametrize("y", [[0, 0, 0], [0, 1, 2], [0]])
def test_batches_without_some_pairs(y: list[int], kind: str, negative_only: bool) -> None:
    """All of one class, all of different ones, or a single sample: finite, with its gradient."""
    h = torch.rand(len(y), 4, requires_grad=True)
    objective = KernelSeparation(kind, -1.0, negative_only)  # type: ignore[arg-type]
    loss = objective(Activity(h), Batch(h, torch.tensor(y)))
    loss.backward()
    assert loss.isfinite()
    assert h.grad.isfinite().all()


TOKENS = Site(0, 2, (7, 5), (7, 5), (3, 8, 8), (7, 3))
REFUSED = {
    "kind": (lambda: KernelSeparation("l3"), r"kind='l3'\): .*l1"),  # type: ignore[arg-type]
    "least": (lambda: KernelSeparation(least=1.0), r"least=1.0\): give the kernel's smallest"),
    "nothing to align with": (
        lambda: KernelSeparation(negative_only=True),
        "all ideal values would be 0",
    ),
    "tokens": (lambda: KernelSeparation().place(TOKENS), r"\(7, 3\) for each sample"),
}


@pytest.mark.parametrize("asked", REFUSED)
def test_refusals_are_one_line(asked: str) -> None:
    call, message = REFUSED[asked]
    with pytest.raises(InputError, match=message) as e:
        call()
    assert "\n" not in str(e.value)
