"""The protocol of growing sequences, and how well a gradient is predicted
(`benchmarks/sequences.py`)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F


@pytest.fixture
def sequences(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import sequences

    return sequences


def test_stages(sequences) -> None:
    assert [sequences.stage("copy", solved) for solved in (0, 3)] == [(1, None), (4, None)]
    grown = [sequences.stage("repeat-copy", solved) for solved in range(5)]
    assert grown == [(1, 1), (2, 1), (2, 2), (3, 2), (3, 3)]


def test_a_token_means_the_same_in_every_stage(sequences) -> None:
    """0 and 1 are symbols, 2 is "go", 2 + R is R, and 11 is the end."""
    for solved in (0, 2, 4):
        length, repeats = sequences.stage("repeat-copy", solved)
        x, y = sequences.drawn("repeat-copy", 50, solved, torch.Generator())
        assert sequences.TASKS["repeat-copy"] == 12
        assert (x[:, length + 1 :] == 2).all()
        for given, labels in zip(x.tolist(), y.tolist(), strict=True):
            times = given[length] - 2
            assert 1 <= times <= repeats
            written = [label for label in labels if label != -100]
            assert written == given[:length] * times + [11]
    x, y = sequences.drawn("copy", 5, 2, torch.Generator())
    assert sequences.TASKS["copy"] == 3
    assert torch.equal(x[:, :3], y[:, 3:])


class Knows:
    """A rule whose error is zero."""

    def backward(self, x: torch.Tensor, y: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(loss=torch.zeros(()))


def test_a_sequence_grows_when_it_is_solved(sequences, monkeypatch) -> None:
    """Two batches of 2 N steps solve N: after 4, 4 + 8 and 4 + 8 + 12 steps. Of repeat-copy, one
    has N + 2 + N R steps: 2 x 4, 2 x 6 and 2 x 8."""
    nothing = torch.optim.SGD([torch.zeros(1)])
    monkeypatch.setattr(sequences, "made", lambda *given: (None, Knows(), nothing))
    budget = dataclasses.replace(sequences.Budget(), time_steps=24, batches=2)
    found = sequences.longest("copy", 2, 0.0, 1e-3, 0, budget)
    assert (found["solved"], found["repeats"], found["solved_at"]) == (3, None, [4, 12, 24])
    budget = dataclasses.replace(budget, time_steps=36)
    found = sequences.longest("repeat-copy", 2, 0.0, 1e-3, 0, budget)
    assert (found["solved"], found["repeats"], found["solved_at"]) == (2, 2, [8, 20, 36])


def test_a_right_prediction_explains_everything(sequences) -> None:
    """The gradient of each sequence's own mean loss, by hand, explains 1 of it; zeros explain 0,
    and its half 3/4."""
    budget = sequences.Budget()
    network, rule, _ = sequences.made(4, 0.1, 0, 1e-3, budget)
    x, y = sequences.drawn("copy", 3, 2, torch.Generator())
    wanted = []
    for given, labels in zip(x, y, strict=True):
        state = [part.detach() for pair in network(given[None, :4], ())[1] for part in pair]
        ends = [part.requires_grad_() for part in state]
        pairs = list(zip(ends[::2], ends[1::2], strict=True))
        scores = network(given[None, 4:], pairs)[0]
        loss = F.cross_entropy(scores[0], labels[4:], reduction="sum") / 3  # labels in all
        wanted.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, ends)]))

    class Says(nn.Module):
        factor = 1.0

        def forward(self, state: torch.Tensor, context: None) -> torch.Tensor:
            return self.factor * torch.stack(wanted).view_as(state)

    rule.synthesizer = says = Says()
    for says.factor, explained, cosine in ((1.0, 1.0, 1.0), (0.5, 0.75, 1.0), (0.0, 0.0, 0.0)):
        found = sequences.prediction(network, rule, x, y, 4)
        assert found["explained"] == pytest.approx(explained, abs=1e-5)
        assert found["cosine"] == pytest.approx(cosine, abs=1e-5)
