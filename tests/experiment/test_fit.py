"""`lw.fit`: a network, a rule and data of one's own have what a run has."""

from __future__ import annotations

import functools
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    TensorDataset,
)

import layerwise as lw
from layerwise.costs.blocks import Costs
from layerwise.errors import InputError, Interrupted
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
        monkeypatch.setattr("layerwise.experiment.training.draw_run", lambda run: None)
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


def test_a_part_of_the_librarys_data(fit: Any) -> None:
    """It is read by a `Loader`, shuffled and normalised."""
    part = lw.data.load("digits").train
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 10))
    weights = []
    for source in (part, lw.data.Loader(part, 128, train=True)):
        torch.manual_seed(0)
        for layer in (model[1], model[3]):
            layer.reset_parameters()
        fit(lw.rules.DGL(lw.cut(model, 2, example=torch.zeros(2, 1, 8, 8))), source, epochs=1)
        weights.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


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
    assert (len(run.metrics()), run.config["epochs"]) == (3, 3)
    for a, b in zip(longer.parameters(), straight.parameters(), strict=True):
        assert torch.equal(a, b)
    fit(rule_of(network()), batches, name="b", epochs=1)
    with pytest.raises(InputError, match="of OneCycle depends on the number of epochs"):
        fit(rule_of(network()), batches, resume=tmp_path / "b", epochs=3)
    with pytest.raises(InputError, match=r"the run has optimizer.name .* this call"):
        fit(rule_of(network()), batches, resume=tmp_path / "b", epochs=1, optimizer=AdamW())


def test_a_scheduler_of_pytorch(fit: Any, tmp_path: Path) -> None:
    batches = list(DataLoader(data(), 30))
    halving = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    options: dict[str, Any] = {"optimizer": PLAIN, "schedule": halving}
    run = fit(rule_of(network()), batches, name="a", epochs=2, **options)
    assert [row["lr"] for row in run.metrics()] == [0.1, 0.05]
    assert run.config["schedule"]["gamma"] == 0.5
    run = fit(rule_of(network()), batches, resume=run.path, epochs=3, **options)
    assert run.metrics()[-1]["lr"] == 0.025
    options["schedule"] = functools.partial(halving, gamma=0.1)
    with pytest.raises(InputError, match=r"the run has schedule.gamma 0.5, and this call 0.1"):
        fit(rule_of(network()), batches, resume=run.path, epochs=3, **options)
    long = functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=4)
    with pytest.raises(InputError, match="schedule OneCycleLR: stepped after each step"):
        fit(rule_of(network()), batches, name="b", epochs=3, optimizer=PLAIN, schedule=long)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("at", [3, 4])  # within an epoch, and between two
@pytest.mark.parametrize("where", ["loader", "sampler", "batch_sampler"])
def test_generators_of_the_loader_continue(where: str, at: int, fit: Any, tmp_path: Path) -> None:
    """A shuffle by a generator of one's own is repeated, too."""

    def given() -> DataLoader[Any]:
        own = torch.Generator().manual_seed(5)
        if where == "loader":
            return DataLoader(data(80), 20, shuffle=True, generator=own)
        sampler = RandomSampler(data(80), generator=own)
        if where == "sampler":
            return DataLoader(data(80), 20, sampler=sampler)
        return DataLoader(data(80), batch_sampler=BatchSampler(sampler, 20, False))

    options: dict[str, Any] = {"optimizer": PLAIN, "epochs": 2, "save_every": 1}
    whole, again = network(), network()
    fit(rule_of(whole), given(), **options)
    with pytest.raises(ZeroDivisionError):
        fit(rule_of(network()), given(), name="cut", observers=[Crash(at)], **options)
    fit(rule_of(again), given(), resume=tmp_path / "cut", **options)
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("criterion", "outputs", "labels"),
    [
        (F.mse_loss, 1, torch.rand(24, 1)),
        (lambda scores, y: F.mse_loss(scores[:, 0], y), 1, torch.rand(24)),
        (F.binary_cross_entropy_with_logits, 3, torch.ones(24, 3)),
    ],
)
def test_labels_for_a_criterion_of_ones_own(
    criterion: Any, outputs: int, labels: Tensor, fit: Any
) -> None:
    """Regression, and several classes at once: the network is a plain loop's, and the costs are
    those of class numbers."""
    x = data(24).tensors[0]
    batches = list(DataLoader(TensorDataset(x, labels), 8))

    def made() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, outputs))

    model, plain = made(), made()
    rule = lw.rules.Backprop(
        lw.cut(model, blocks=2, example=torch.zeros(2, 6)), criterion=criterion
    )
    run = fit(rule, batches, validation=batches, optimizer=PLAIN, schedule=Constant(), epochs=1)
    for images, y in batches:
        loss = criterion(plain(images), y)
        for p, g in zip(
            plain.parameters(), torch.autograd.grad(loss, list(plain.parameters())), strict=True
        ):
            p.data -= 0.1 * g
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    (row,) = run.metrics()
    assert row["validation_loss"] == pytest.approx(criterion(model(x), labels).item(), rel=1e-5)
    forward = 2 * (6 * 12 + 12 * outputs)
    assert Costs.of(rule, labels=labels).step_flops == 3 * forward - 2 * 6 * 12


def test_several_views_of_each_sample(fit: Any) -> None:
    contrastive = lw.objectives.NTXent(lw.heads.Projector(dim=8))
    rule = lw.rules.Greedy(lw.cut(network(), blocks=2, example=torch.zeros(2, 6)), contrastive)
    x, y = data(24).tensors
    batches = [(torch.cat([x, x + 0.1]), y)]
    (row,) = fit(rule, batches, validation=[(x, y)], epochs=1).metrics()
    assert row["validation_accuracy"] is not None


def test_an_interrupted_run_says_how_it_continues(fit: Any, tmp_path: Path) -> None:
    class Stops(Observer):
        def due(self, step: int) -> bool:
            return step == 1

        def before_step(self, step: int, rule: lw.Rule, **_: Any) -> None:
            signal.raise_signal(signal.SIGINT)

    batches = list(DataLoader(data(), 30))
    with pytest.raises(Interrupted, match=r"stopped at step 2; continue: lw.fit\(..., resume='"):
        fit(rule_of(network()), batches, name="a", epochs=1, observers=[Stops()])
    with pytest.raises(InputError, match=r"fit\(name='a'\): .* continue it with resume='"):
        fit(rule_of(network()), batches, name="a", epochs=1)


def test_inputs_that_the_network_does_not_take(fit: Any) -> None:
    batches = [{"input": torch.zeros(4, 6), "number": torch.arange(4), "y": torch.arange(4) % 3}]
    with pytest.raises(
        InputError, match="got the inputs input, number, which the network does not"
    ):
        fit(rule_of(network()), batches, epochs=1)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(data())


class Uneven(Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.zeros(i), 0


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
        ({"epochs": 0}, "^fit: epochs=0: give at least 1$"),
        ({"clip_norm": -1.0}, "^fit: clip_norm=-1.0: give a positive number, or None for no"),
        ({"step_per_block": True, "accumulate": 2}, "^fit: step_per_block=True contradicts"),
        ({"rule": "DGL"}, r"fit\(rule='DGL'\)"),
        ({"train": None}, r"fit\(train=None\): give batches"),
        ({"train": Endless()}, "Endless has no length"),
        ({"train": TensorDataset(torch.zeros(0, 6))}, "there is no sample in it"),
        ({"train": DataLoader(data(), batch_size=None)}, "it gives single samples"),
        ({"train": [(torch.zeros(2, 6), ["a", "b"])]}, "labels of a batch are a list of 2 that"),
        ({"train": Uneven()}, "its first batch cannot be made: stack expects"),
        ({"train": [{"x": 0, "y": 0, "label": 0}]}, "labels under label and y; keep one"),
        ({"schedule": "Cosine"}, r"fit\(schedule='Cosine'\): give one of layerwise"),
        ({"optimizer": torch.optim.LBFGS}, "optimizer LBFGS: it cannot step with a gradient alone"),
        ({"optimizer": torch.optim.SparseAdam}, "does not support dense gradients"),
        ({"optimizer": torch.optim.Muon}, "does not take the network's parameters"),
        ({"observers": [3]}, r"fit\(observers=\[3\]\)"),
        ({"observers": Observer()}, r"fit\(observers="),
        ({"loggers": "wandb"}, r"give a list of names, \['wandb'\]"),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str, fit: Any, tmp_path: Path) -> None:
    batches = list(DataLoader(data(), 30))
    with pytest.raises(InputError, match=message) as error:
        fit(**{"rule": rule_of(network()), "train": batches, **arguments})
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_commands_say_what_it_is(fit: Any, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    from layerwise.cli.main import main

    for drawing in ("draw_runs", "draw_blocks"):
        monkeypatch.setattr(f"layerwise.report.comparison.{drawing}", lambda *given: None)
    batches = list(DataLoader(data(), 30))
    fit(rule_of(network()), batches, name="a", epochs=1)
    for command in ("evaluate {}", "train --resume {}"):
        assert main(command.format(tmp_path / "a").split()) == 2
        assert "lw.fit made it" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "a"), "--out", str(tmp_path / "out")]) == 0
