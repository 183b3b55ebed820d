"""`layerwise evaluate`: values against a computation of their own."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import networks
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from layerwise import InputError, data, models, objectives, rules
from layerwise.analysis import exits as module
from layerwise.analysis.exits import measure
from layerwise.blocks import Blocks
from layerwise.data import Augment, Loader
from layerwise.runs.run import Run
from layerwise.trainer import fabric_for


def calibration_error(logits: torch.Tensor, y: torch.Tensor) -> float:
    """Guo et al. 2017, eq. 3, over 15 bins of equal width."""
    confidence, predicted = logits.softmax(1).max(1)
    edges, total = torch.linspace(0, 1, 16), 0.0
    for low, high in pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            accuracy = (predicted == y)[inside].double().mean()
            total += inside.double().mean() * (accuracy - confidence[inside].double().mean()).abs()
    return float(total)


@torch.no_grad()
def outputs(state: dict, part) -> tuple[torch.Tensor, torch.Tensor]:
    """The plain network's, with a checkpoint's weights: the averaged ones where there are."""
    weights = {k.removeprefix("module."): w for k, w in (state["ema"] or state["rule"]).items()}
    net = models.mlp((1, 8, 8), 10, layers=2, width=12).eval()
    of_net = [weight for key, weight in weights.items() if key.startswith("blocks.")]
    for parameter, weight in zip(net.parameters(), of_net, strict=True):
        parameter.copy_(weight)
    x, y = next(Loader(part, len(part), augment=Augment(), train=False).epoch(0))
    return net(x), y


@pytest.mark.parametrize("options", ["", "--ema 0.95"])
@pytest.mark.parametrize(
    ("split", "checkpoint"), [("test", "last"), ("validation", "best"), ("train", "last")]
)
def test_values(split, checkpoint, options, trained, cli):
    run = trained("run", f"--epochs 4 --augment.flip true --model.dropout 0.1 {options}")
    result = cli(f"evaluate {run} --split {split} --checkpoint {checkpoint}")
    assert result.code == 0, result.err
    found = json.loads((run / f"evaluation-{split}-{checkpoint}.json").read_text())
    state = Run(run).load(checkpoint)
    part = getattr(data.load("digits"), split)
    logits, y = outputs(state, part)
    assert found["images"] == len(y)
    assert found["epoch"] == state["epoch"]
    exit = found["exits"][1]
    assert exit["accuracy"] == pytest.approx((logits.argmax(1) == y).double().mean().item())
    assert exit["loss"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)
    top5 = (logits.topk(5).indices == y[:, None]).any(1).double().mean().item()
    assert exit["top5"] == pytest.approx(top5)
    assert exit["calibration_error"] == pytest.approx(calibration_error(logits, y), abs=1e-5)
    counts = [[0] * 10 for _ in range(10)]
    for true, predicted in zip(y.tolist(), logits.argmax(1).tolist(), strict=True):
        counts[true][predicted] += 1
    assert found["confusion"] == counts
    assert f"{100 * exit['accuracy']:.2f}" in result.out
    assert result.err == ""
    rows = Run(run).metrics()
    if split != "train":
        row = rows[state["epoch"] - 1]
        assert exit["accuracy"] == pytest.approx(row[f"{split}_accuracy"])
        assert found["exits"][0]["loss"] == pytest.approx(row[f"{split}_loss_block0"], rel=1e-5)


def test_each_exit_is_a_network_of_its_own(trained, cli):
    """64 to 12 to 10 scores, and a head of 12 to 10 after the first layer."""
    run = trained("run", "--model.layers 2 --rule.head Linear --epochs 1")
    result = cli(f"evaluate {run}")
    assert result.code == 0, result.err
    assert f"{64 * 12 + 12 + 12 * 10 + 10:,}" in result.out
    first, second = json.loads((run / "evaluation-test-last.json").read_text())["exits"][:2]
    weights = 64 * 12 + 12
    assert first["parameters"] == weights + 12 * 10 + 10
    assert first["flops"] == 2 * (64 * 12 + 12 * 10)
    assert second["parameters"] > first["parameters"]


@pytest.mark.parametrize("name", ["local_critic", "shared_readout", "sgr"])
def test_a_network_that_ends_at_an_exit(name):
    case = networks.cnn()
    rule = networks.ALL_RULES[name](case.blocks).eval()
    for i, scores in enumerate(rule.exits(case.x)):
        network = module.Exit(rule, i)
        assert torch.equal(network(case.x), scores)
        of_later = {p for k in range(i + 1, 4) for p in rule.blocks[k].parameters()}
        assert not of_later & set(network.parameters())


@pytest.mark.parametrize(
    ("make", "i", "says"),
    [
        (rules.DGL, 9, "give the number of a block, 0 to 3"),
        (lambda blocks: rules.Greedy(blocks, objectives.Reconstruct()), 1, "gives no class scores"),
        (lambda blocks: rules.Greedy(blocks, [None] * 3), 1, "gives no class scores"),
        (rules.ForwardForward, 1, "does not predict by running its blocks in order"),
    ],
)
def test_an_exit_that_is_none(make, i, says):
    with pytest.raises(ValueError, match=says) as e:
        module.Exit(make(networks.cnn().blocks), i)
    assert "\n" not in str(e.value)


def test_the_cheapest_exit_that_is_good_enough():
    exits = [
        None,
        {"accuracy": 0.80, "flops": 10},
        {"accuracy": 0.905, "flops": 40},
        {"accuracy": 0.91, "flops": 30},
        {"accuracy": 0.90, "flops": 50},
    ]
    assert [module.cheapest(exits, w) for w in (0.0, 0.01, 0.2)] == [3, 3, 1]


def test_a_rule_without_heads_has_one_exit(trained, cli):
    run = trained("run", "--rule Backprop --epochs 1")
    assert cli(f"evaluate --split test {run}").code == 0  # the run may come last, too
    exits = json.loads((run / "evaluation-test-last.json").read_text())["exits"]
    assert exits[0] is None
    assert exits[1]["accuracy"] >= 0


class Fixed(nn.Module):
    """Gives its input as class scores."""

    def forward(self, x):
        return x.flatten(1)


@pytest.mark.parametrize("most", [1000, 2])
def test_confusion(most, monkeypatch):
    """Rows are what it is, columns what it was taken for, by the last block. Known by hand:

    true       0 0 0 1 1 2
    predicted  0 0 1 2 1 0
    """
    monkeypatch.setattr(measure, "CONFUSION_CLASSES", most)
    y = torch.tensor([0, 0, 0, 1, 1, 2])
    x = torch.eye(3)[[0, 0, 1, 2, 1, 0]][:, :, None, None]
    loader = SimpleNamespace(tokens=False, epoch=lambda e: [(x[:4], y[:4]), (x[4:], y[4:])])
    rule = rules.Backprop(Blocks([nn.Identity(), Fixed()], example=x))
    exits, ensembles, confusion = module.evaluate(rule, loader, 3, fabric_for("cpu"))
    assert exits[1]["accuracy"] == 3 / 6
    assert ensembles == {}  # of one exit
    assert confusion == ([[2, 1, 0], [0, 1, 1], [1, 0, 0]] if most == 1000 else None)


class Two(nn.Module):
    """The same scores, and twice their opposite but for the first class."""

    def forward(self, x):
        return -2 * x * torch.tensor([0.0, 1.0, 1.0])


def test_sums_of_exits():
    """Exit 1 gives x, exit 2 gives (0, -2 x_1, -2 x_2). For x = (1, 4, 0) with label 0:

    sum: (1, -4, 0) / 2, predicted 0; doubling: (1, -12, 0) / 3; the first exit alone predicts 1.
    """
    scores = [torch.tensor([[1.0, 4.0, 0.0]]), None, torch.tensor([[0.0, -8.0, 0.0]])]
    assert module.ensemble(scores).tolist() == [[0.5, -2.0, 0.0]]
    torch.testing.assert_close(module.ensemble(scores, 2.0), torch.tensor([[1 / 3, -4.0, 0.0]]))
    x, y = torch.tensor([[1.0, 4.0, 0.0]]), torch.tensor([0])
    loader = SimpleNamespace(tokens=False, epoch=lambda e: [(x, y)])
    rule = rules.Greedy(Blocks([nn.Identity(), Two()], example=x), objectives.Classify())
    exits, ensembles, _ = module.evaluate(rule, loader, 3, fabric_for("cpu"))
    assert [exit["accuracy"] for exit in exits] == [0.0, 1.0]
    assert ensembles["sum"]["accuracy"] == 1.0
    wanted = F.cross_entropy(torch.tensor([[0.5, -2.0, 0.0]]), y).item()
    assert ensembles["sum"]["loss"] == pytest.approx(wanted)
    assert ensembles["doubling"]["accuracy"] == 1.0


def test_losses_of_samples(trained, cli):
    run = trained("run", "--epochs 1")
    result = cli(f"evaluate {run} --split train --losses true")
    assert result.code == 0, result.err
    found = load_file(run / "losses-train-last.safetensors")["losses"]
    logits, y = outputs(Run(run).load("last"), data.load("digits").train)
    torch.testing.assert_close(found, F.cross_entropy(logits, y, reduction="none"))
    told = json.loads((run / "evaluation-train-last.json").read_text())
    assert told["exits"][1]["loss"] == pytest.approx(found.mean().item(), rel=1e-4)
    assert 0 <= told["ensembles"]["sum"]["accuracy"] <= 1
    again = trained("easy", f"--epochs 1 --curriculum.scores {run}/losses-train-last.safetensors")
    assert Run(again).config["curriculum"]["start"] == 0.04
    assert "batches draws from 52 of 1294 images" in (again / "log.txt").read_text()  # 4 %
    other = cli(f"train --curriculum.scores {run}/config.yaml --epochs 1")
    assert (other.code, other.err.count("\n")) == (2, 1)
    assert "cannot be read" in other.err
    scores = f"{run}/losses-train-last.safetensors"
    other = cli(f"train --curriculum.scores {scores} --epochs 1 --seed 1")
    assert (other.code, other.err.count("\n")) == (2, 1)
    assert "the scores are of other images" in other.err


def test_what_is_not_there(trained, cli):
    run = trained("run", "--epochs 1 --data.validation 0")
    for line, says in (
        ("--checkpoint best", "there is: last"),
        ("--split validation", "no such split"),
        ("--split tset", "no such split"),
        ("--device cuda:5", "no such device"),
    ):
        result = cli(f"evaluate {run} {line}")
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert says in result.err


def test_a_run_without_a_checkpoint(trained, cli):
    run = trained("run", "--epochs 1")
    for path in Path(run / "checkpoints").iterdir():
        path.unlink()
    result = cli(f"evaluate {run}")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "no checkpoint yet" in result.err


class Batches:
    """A loader of these batches."""

    tokens = False

    def __init__(self, *batches: tuple[torch.Tensor, torch.Tensor]):
        self.batches = batches

    def epoch(self, epoch: int):
        return iter(self.batches)


@pytest.mark.parametrize("kind", ["maps", "tokens", "soft"])
def test_labels_that_do_not_count_are_left_out(kind):
    """Of pixels and tokens: loss, accuracy, calibration and confusion are those of the others."""
    maps = kind == "maps"
    shape = (2, 4, 7) if maps else (4, 2)
    layer = nn.Conv2d(2, 7, 1) if maps else nn.Linear(2, 7)
    x = 3 * torch.randn(6, *shape)
    blocks = Blocks([nn.Identity(), layer], example=x)
    rule = rules.Greedy(blocks, [None])
    logits = layer(x).detach().movedim(1, -1) if maps else layer(x).detach()
    y = torch.randint(0, 7, logits.shape[:-1])
    if kind != "soft":
        y[0], y[3, 1:] = -100, -100
    given = F.one_hot(y, 7).float() if kind == "soft" else y
    loader = Batches((x[:4], given[:4]), (x[4:], given[4:]))
    fabric = fabric_for("cpu")
    (_, found), _, confusion = module.evaluate(rule, loader, 7, fabric)
    counts = y != -100
    z, true = logits[counts], y[counts]
    assert found["loss"] == pytest.approx(F.cross_entropy(z, true).item(), rel=1e-5)
    assert found["accuracy"] == pytest.approx((z.argmax(1) == true).double().mean().item())
    top5 = (z.topk(5).indices == true[:, None]).any(1).double().mean().item()
    assert found["top5"] == pytest.approx(top5)
    assert found["calibration_error"] == pytest.approx(calibration_error(z, true), abs=1e-5)
    wanted = torch.zeros(7, 7, dtype=torch.long)
    for pair in zip(true, z.argmax(1), strict=True):
        wanted[pair] += 1
    assert confusion == wanted.tolist()

    losses, right = module.sample_outcomes(rule, loader, fabric)
    for k in range(6):
        own = counts[k]
        mean = F.cross_entropy(logits[k][own], y[k][own]).item() if own.any() else 0.0
        assert losses[k].item() == pytest.approx(mean, rel=1e-5)
        assert right[k] == (logits[k].argmax(-1) == y[k])[own].all()


def test_labels_that_are_no_classes_are_refused():
    x = torch.randn(4, 2)
    rule = rules.Backprop(Blocks([nn.Linear(2, 1)], example=x))
    with pytest.raises(InputError, match="which are not classes of these"):
        module.evaluate(rule, Batches((x, torch.randn(4))), 2, fabric_for("cpu"))


def naive_exits(run: Path, split: str) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The class scores of both exits of the plain networks, and the labels."""
    weights = iter(Run(run).load("last")["rule"].values())
    layer, second = nn.Linear(64, 12), nn.Linear(12, 12)
    classifier, head = nn.Linear(12, 10), nn.Linear(12, 10)
    for part in (layer, second, classifier, head):
        part.weight.data, part.bias.data = next(weights), next(weights)
    x, y = next(Loader(getattr(data.load("digits"), split), 2000, train=False).epoch(0))
    h = layer(x.flatten(1)).relu()
    return [head(h).detach(), classifier(second(h).relu()).detach()], y


def test_early_exits_that_decide(trained, cli):
    """Temperatures by a search of their own, decisions image by image."""
    run = trained("exits", "--rule.head Linear --epochs 2 --outcomes true")
    result = cli(f"evaluate {run} --exits true")
    assert (result.code, result.err) == (0, ""), result.err
    told = json.loads((run / "exits-test-last.json").read_text())
    assert told["fitted_on"] == "validation"
    assert "temperatures were fitted on the validation split" in result.out
    scores, y = naive_exits(run, "validation")
    for z, t in zip(scores, told["temperatures"], strict=True):
        at = [F.cross_entropy(z.double() / u, y).item() for u in (0.999 * t, t, 1.001 * t)]
        assert at[1] < min(at[0], at[2])
    scores, y = naive_exits(run, "test")
    p = [(z / t).softmax(1) for z, t in zip(scores, told["temperatures"], strict=True)]
    first = 2 * (64 * 12 + 12 * 10)
    second = first + 2 * (12 * 12 + 12 * 10)
    assert [row["threshold"] for row in told["thresholds"]][4] == 0.95
    for row in told["thresholds"]:
        leaves = p[0].amax(1) >= row["threshold"]
        chosen = torch.where(leaves, p[0].argmax(1), p[1].argmax(1))
        share = leaves.double().mean().item()
        assert row["shares"] == pytest.approx([share, 1 - share])
        assert row["accuracy"] == pytest.approx((chosen == y).double().mean().item())
        assert row["flops"] == pytest.approx(share * first + (1 - share) * second)
    classes = [z.argmax(1) for z in scores]
    agree = classes[0] == classes[1]
    assert told["agree"]["share"] == pytest.approx(agree.double().mean().item())
    right = (classes[1] == y).double()
    assert told["agree"]["accuracy"][1] == pytest.approx(right[agree].mean().item())
    assert told["agree"]["accuracy_otherwise"][1] == pytest.approx(right[~agree].mean().item())
    assert told["agreement"][0][1] == told["agree"]["share"]
    assert told["over_epochs"] is None
    tensors = load_file(run / "exits-test-last.safetensors")
    assert torch.equal(tensors["disagree"], (~agree).nonzero()[:, 0])
    assert torch.equal(tensors["classes"], torch.stack(classes))
    assert torch.equal(tensors["labels"], y)
    assert (run / "exits-test-last.png").read_bytes()[:4] == b"\x89PNG"

    files = {path.name: path.read_bytes() for path in run.glob("exits-*")}
    result = cli(f"evaluate {run} --exits true --threshold 0.7")
    assert result.code == 0, result.err
    one = json.loads((run / "exits-test-last-2.json").read_text())
    assert one["thresholds"] == told["thresholds"][1:2]
    assert files.items() <= {path.name: path.read_bytes() for path in run.glob("exits-*")}.items()
    assert not (run / "exits-test-last-2.safetensors").exists()  # the same content

    result = cli(f"evaluate {run} --exits true --split train")
    scores, _ = naive_exits(run, "train")
    agree = scores[0].argmax(1) == scores[1].argmax(1)
    epochs = [load_file(run / f"outcomes/epoch-00{e}.safetensors")["right"] for e in (1, 2)]
    over = torch.stack(epochs).double().mean(0)
    told = json.loads((run / "exits-train-last.json").read_text())["over_epochs"]
    assert told["agree"] == pytest.approx(over[agree].mean().item())
    assert told["otherwise"] == pytest.approx(over[~agree].mean().item())
    assert "during the training" in result.out
    kept = epochs[1]  # of two epochs: right after the last one
    assert told["unforgettable"]["agree"] == pytest.approx(kept[agree].double().mean().item())
    assert told["unforgettable"]["otherwise"] == pytest.approx(kept[~agree].double().mean().item())
    assert "once right, never wrong again" in result.out


def test_early_exits_without_validation(trained, cli):
    run = trained("whole", "--rule.head Linear --epochs 1 --data.validation 0")
    result = cli(f"evaluate {run} --exits true --threshold 1.5")
    assert result.code == 0, result.err
    assert "temperatures are 1, not calibrated" in result.out
    told = json.loads((run / "exits-test-last.json").read_text())
    assert (told["fitted_on"], told["temperatures"]) == (None, [1.0, 1.0])
    evaluated = json.loads((run / "evaluation-test-last.json").read_text())["exits"]
    assert told["thresholds"][0]["accuracy"] == pytest.approx(evaluated[1]["accuracy"])
    assert told["thresholds"][0]["shares"] == [0, 1]
    assert told["fixed"][0]["flops"] == evaluated[0]["flops"]


def test_early_exits_that_are_none(trained, cli):
    run = trained("plain", "--rule Backprop --epochs 1")
    for line, says in (
        ("--exits true", "no block but the last predicts"),
        ("--threshold 0.9", "also give --exits true"),
        ("--exits true --threshold -1", "give a probability"),
    ):
        result = cli(f"evaluate {run} {line}")
        assert (result.code, result.err.count("\n")) == (2, 1), result.err
        assert says in result.err


def test_an_empty_argument(cli):
    result = cli("evaluate", "run", "")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "'': no such option" in result.err.replace("\n", " ")
