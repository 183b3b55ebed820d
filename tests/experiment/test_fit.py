"""`lw.fit`: a network, a rule and data of one's own have what a run has."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import layerwise as lw
from layerwise.errors import InputError
from layerwise.runs.run import Run
from layerwise.trainer import Observer
from layerwise.trainer.optim import SGD, AdamW, Constant

PLAIN = SGD(lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)
    )


def data(n: int = 120, seed: int = 1) -> TensorDataset:
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=made)
    return TensorDataset(x, (x[:, :3]).argmax(1))


def rule_of(model: nn.Module, kind: Any = lw.rules.DGL) -> lw.Rule:
    return kind(lw.cut(model, blocks=2, example=torch.zeros(2, 6)))


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    if "plain_loop" not in request.node.name:  # one test looks at the pictures, which take a second
        monkeypatch.setattr("layerwise.experiment.fit.draw_run", lambda run: None)
    return functools.partial(lw.fit, runs=tmp_path, progress=False, device="cpu")


def test_it_is_a_plain_loop_bit_for_bit(fit: Any) -> None:
    """Batches from a list, in its order; any function makes the optimizer."""
    batches = list(DataLoader(data(), 30))
    model = network()
    run = fit(
        rule_of(model, lw.rules.Backprop),
        batches,
        test=batches,
        optimizer=functools.partial(torch.optim.Adam, lr=0.01),
        schedule=Constant(),
        epochs=3,
    )
    plain = network()
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.01)
    for _ in range(3):
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(plain(x), y).backward()
            optimizer.step()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
    rows = run.metrics()
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    x, y = data().tensors
    assert rows[-1]["test_accuracy"] == pytest.approx((plain(x).argmax(1) == y).float().mean())
    assert (run.path / "curves" / "curves.png").exists()
    assert (run.path / "model.safetensors").exists()


class Crash(Observer):
    """Ends the training before a step, as if the process was killed."""

    def __init__(self, at: int) -> None:
        self.at = at

    def due(self, step: int) -> bool:
        return step == self.at

    def before_step(self, step: int, rule: lw.Rule, **_: Any) -> None:
        raise ZeroDivisionError


@pytest.mark.parametrize("source", ["loader", "dataset", "list"])
def test_a_run_continues_to_the_same_bits(source: str, fit: Any) -> None:
    """Shuffled and augmented by PyTorch's own generator."""

    class Noisy(Dataset[tuple[Tensor, Tensor]]):
        def __len__(self) -> int:
            return 100

        def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
            x, y = data()[i]
            return x + 0.1 * torch.randn(6), y

    def given() -> Any:
        if source == "loader":
            return DataLoader(Noisy(), 20, shuffle=True)
        return Noisy() if source == "dataset" else list(DataLoader(data(100), 20))

    options: dict[str, Any] = {
        "optimizer": AdamW(lr=0.01),
        "epochs": 3,
        "batch_size": 20,
        "save_every": 1,
    }
    whole = network()
    straight = fit(rule_of(whole), given(), **options)
    interrupted = network()
    with pytest.raises(ZeroDivisionError):  # in the second epoch, at its third batch
        fit(rule_of(interrupted), given(), name="cut", observers=[Crash(7)], **options)
    again = network()
    path = straight.path.parent / "cut"
    assert Run.open(path).load("last")["batch"] == 2
    fit(rule_of(again), given(), resume=path, **options)
    assert "other batches" not in (path / "log.txt").read_text()
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    losses = [[row["train_loss"] for row in r.metrics()] for r in (straight, Run.open(path))]
    assert losses[0] == losses[1]


def test_batches_of_every_form() -> None:
    """Pairs, mappings with one input or several, and a data set of single samples."""
    x, y = torch.arange(8.0).view(4, 2), torch.tensor([0, 1, 0, 1])
    batches = lw.data.Batches

    def first(source: Any, **options: Any) -> Any:
        return next(batches(source, **options).epoch(0))

    for source in ([(x, y)], [[x, y]], [{"image": x, "label": y}], [(x, [0, 1, 0, 1])]):
        got_x, got_y = first(source)
        assert torch.equal(got_x, x)
        assert torch.equal(got_y, y)
    got_x, got_y = first([{"ids": x, "mask": y, "labels": y}])
    assert set(got_x) == {"ids", "mask"}
    assert torch.equal(got_y, y)
    got_x, got_y = first(TensorDataset(x, y), batch_size=3)
    assert torch.equal(got_x, x[:3])
    assert len(batches(TensorDataset(x, y), batch_size=3)) == 2
    assert len(batches(TensorDataset(x, y), batch_size=3, train=True)) == 1


def test_a_hugging_face_data_set() -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"x": [[1.0, 2.0], [3.0, 4.0]], "label": [0, 1]})
    x, y = next(lw.data.Batches(made, batch_size=2).epoch(0))
    assert x.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert y.tolist() == [0, 1]


def test_patience(fit: Any) -> None:
    """Training ends two epochs after the best, which is the first if nothing is learned."""
    batches = list(DataLoader(data(), 30))
    nothing = functools.partial(torch.optim.SGD, lr=0.0)
    run = fit(
        rule_of(network()), batches, validation=batches, optimizer=nothing, epochs=9, patience=2
    )
    assert len(run.metrics()) == 3
    assert "the best was epoch 1" in (run.path / "log.txt").read_text()


def test_another_order_is_told(fit: Any, tmp_path: Path) -> None:
    def given(reverse: bool) -> list[Any]:
        batches = list(DataLoader(data(), 20))
        return batches[::-1] if reverse else batches

    with pytest.raises(ZeroDivisionError):
        fit(
            rule_of(network()),
            given(False),
            name="a",
            epochs=2,
            save_every=1,
            observers=[Crash(3)],
        )
    fit(rule_of(network()), given(True), resume=tmp_path / "a", epochs=2)
    assert "other batches than before" in (tmp_path / "a" / "log.txt").read_text()


def test_longer_with_a_constant_rate(fit: Any, tmp_path: Path) -> None:
    batches = list(DataLoader(data(), 30))
    options: dict[str, Any] = {"optimizer": PLAIN, "schedule": Constant()}
    fit(rule_of(network()), batches, name="a", epochs=1, **options)
    longer = network()
    run = fit(rule_of(longer), batches, resume=tmp_path / "a", epochs=3, **options)
    straight = network()
    fit(rule_of(straight), batches, epochs=3, **options)
    assert len(run.metrics()) == 3
    for a, b in zip(longer.parameters(), straight.parameters(), strict=True):
        assert torch.equal(a, b)
    fit(rule_of(network()), batches, name="b", epochs=1)
    with pytest.raises(InputError, match="schedule OneCycle depends on their number"):
        fit(rule_of(network()), batches, resume=tmp_path / "b", epochs=3)
    with pytest.raises(InputError, match=r"the run has optimizer .* this call"):
        fit(rule_of(network()), batches, resume=tmp_path / "b", epochs=1, optimizer=AdamW())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"train": iter([])},
            r"fit\(train=...\): list_iterator cannot be read once for each epoch",
        ),
        ({"train": []}, "there is no batch in it"),
        ({"train": [torch.zeros(2, 6)]}, r"a batch is a tensor \(2, 6\); give \(inputs, labels\)"),
        ({"train": [{"x": torch.zeros(2, 6)}]}, "a mapping of x"),
        ({"optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(1))])}, "give a recipe such as"),
        ({"epoch": 3}, r"fit\(epoch=...\): no such option; did you mean 'epochs'"),
        ({"stages": 2}, r"fit\(stages=...\): no such option"),
        ({"patience": 2}, "no validation data"),
        ({"rule": "DGL"}, r"fit\(rule='DGL'\)"),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str, fit: Any, tmp_path: Path) -> None:
    batches = list(DataLoader(data(), 30))
    with pytest.raises(InputError, match=message) as error:
        fit(**{"rule": rule_of(network()), "train": batches, **arguments})
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_commands_say_what_it_is(fit: Any, tmp_path: Path, capsys: Any) -> None:
    from layerwise.cli.main import main

    batches = list(DataLoader(data(), 30))
    fit(rule_of(network()), batches, name="a", epochs=1)
    for command in ("evaluate {}", "train --resume {}"):
        assert main(command.format(tmp_path / "a").split()) == 2
        assert "lw.fit made it" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "a"), "--out", str(tmp_path / "out")]) == 0
