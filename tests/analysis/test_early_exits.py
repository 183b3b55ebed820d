"""Early exits that decide: temperatures, decisions, exports."""

from __future__ import annotations

import math
from types import SimpleNamespace

import networks
import pytest
import torch
from torch import nn

from layerwise import Blocks, cut, heads, models, objectives, rules
from layerwise.analysis.exits import (
    EarlyExit,
    Exit,
    cheapest,
    fit_temperatures,
    predictions,
    temperature,
)
from layerwise.blocks import alone as alone_module
from layerwise.costs.blocks import BlockCost, Costs
from layerwise.errors import InputError
from layerwise.trainer import fabric_for

# ------------------------------------------------------------------------------- temperatures


@pytest.mark.parametrize(("a", "share"), [(1.0, 0.75), (4.0, 0.9), (0.3, 0.6)])
def test_the_temperature_of_two_classes(a, share):
    """Scores (a, -a): the class is right with probability 1 / (1 + exp(-2 a / T)), which is the
    share of right labels where the likelihood is greatest: T = 2 a / log(p / (1 - p))."""
    scores = torch.tensor([[a, -a]]).expand(20, 2) + torch.randn(20, 1)  # a shift is no matter
    y = (torch.arange(20) >= round(20 * share)).long()
    wanted = 2 * a / math.log(share / (1 - share))
    assert temperature(scores, y) == pytest.approx(wanted, rel=1e-5)
    assert temperature(scores.double(), y) == pytest.approx(temperature(scores, y), rel=1e-6)
    assert temperature(5 * scores, y) == pytest.approx(5 * wanted, rel=1e-5)


def test_the_temperature_of_many_classes():
    """Scores (a, 0, ..., 0) of C classes: p = e / (e + C - 1) with e = exp(a / T)."""
    scores = torch.zeros(10, 5, dtype=torch.float64)
    scores[:, 2] = 3.0
    y = torch.tensor([2, 2, 2, 2, 2, 2, 2, 0, 1, 4])
    assert temperature(scores, y) == pytest.approx(3 / math.log(0.7 * 4 / 0.3), rel=1e-9)


def test_temperatures_without_a_minimum():
    scores = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert temperature(scores, torch.tensor([0, 1])) == 0.01  # all right
    assert temperature(scores, torch.tensor([1, 0])) == 100.0  # worse than chance


@pytest.mark.parametrize(
    ("scores", "y", "says"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(2), "give .N, C. and .N,."),
        (torch.zeros(0, 3), torch.zeros(0), "N at least 1"),
        (torch.tensor([[math.nan, 0.0]]), torch.zeros(1), "not finite"),
    ],
)
def test_no_temperature(scores, y, says):
    with pytest.raises(InputError, match=says) as e:
        temperature(scores, y)
    assert "\n" not in str(e.value)


# ---------------------------------------------------------------------------------- decisions


class Opposite(nn.Module):
    def forward(self, x):
        return -2 * x


LN3 = math.log(3)


def by_hand(dtype=torch.float32):
    """Exit 0 gives x, exit 1 gives -2 x, exit 2 gives 4 x.

    x = (0, 3 ln 3, 0): p = 27 / 29 at exit 0
    x = (0, ln 3, 0):   p = 3 / 5 at exit 0; (0, -2 ln 3, 0): p = 1 / (2 + 1/9) at exit 1;
                        (0, 4 ln 3, 0) at exit 2
    x = (0, -ln 3, 0):  p = 1 / (2 + 1/3) at exit 0; (0, 2 ln 3, 0): p = 9 / 11 at exit 1
    """
    x = torch.tensor([[0, LN3, 0], [0, 3 * LN3, 0], [0, -LN3, 0]], dtype=dtype)
    blocks = Blocks([nn.Identity(), Opposite(), Opposite()], example=x)
    return rules.Greedy(blocks, objectives.Classify()), x


@pytest.mark.parametrize(
    ("threshold", "temperatures", "taken"),
    [
        (0.7, None, [2, 0, 1]),
        (0.82, None, [2, 0, 2]),  # 9 / 11 is 0.818
        (0.5, None, [0, 0, 1]),
        (0.94, None, [2, 2, 2]),  # 27 / 29 is 0.931
        (0.58, (3.0, 1.0, 1.0), [2, 0, 1]),  # (0, ln 3, 0): p = 3 / 5
        (0.61, (3.0, 1.0, 1.0), [2, 2, 1]),
        (0.59, (1.0, 2.0, 1.0), [0, 0, 1]),  # (0, ln 3, 0) at exit 1: p = 3 / 5
        (0.61, (1.0, 2.0, 1.0), [2, 0, 2]),
    ],
)
def test_decisions_by_hand(threshold, temperatures, taken):
    rule, x = by_hand()
    scores, found = EarlyExit(rule, threshold, temperatures).decide(x)
    assert found.tolist() == taken
    factors = torch.tensor([1.0, -2.0, 4.0])[torch.tensor(taken)]
    assert torch.equal(scores, factors[:, None] * x)


class Masked(nn.Module):
    """Layers that read a mask besides their input; not an nn.Sequential."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True) for _ in range(3)
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x, mask=None):
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=mask)
        return self.head(x.mean(1))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())

    def forward(self, x):
        return x + self.inner(x)


class Residual(nn.Module):
    """Not an nn.Sequential."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(6))
        self.head = nn.Linear(3 * 8 * 8, 10)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x.flatten(1))


ROWS = 12


def case(name):
    """A rule, a batch for it, and how to call a module with this batch."""
    torch.manual_seed(1)
    if name == "mask":
        x, mask = torch.randn(ROWS, 5, 8), torch.rand(ROWS, 5) < 0.3
        mask[:, 0] = False
        rule = rules.DGL(cut(Masked(), 3, example=(x, mask)), head=heads.MLP(width=7))
        return rule.eval(), {"x": x, "mask": mask}
    if name == "resnet":
        x = torch.randn(ROWS, 3, 8, 8)
        return rules.DGL(cut(Residual(), 4, example=x), head=heads.MLP(width=7)).eval(), x
    x = torch.randn(ROWS, 3, 8, 8)
    network = models.basic_cnn((3, 8, 8), 10, channels=4)
    if name == "partly":  # the second block does not predict
        blocks = cut(network, blocks="all", example=x)
        given = [objectives.Classify(heads.Linear()), None, *[objectives.Classify(heads.MLP())]]
        return rules.Greedy(blocks, given * 1 + [None] * (len(blocks) - 4)).eval(), x
    return rules.DGL(cut(network, blocks="all", example=x), head=heads.MLP(width=7)).eval(), x


def called(module, x):
    return module(**x) if isinstance(x, dict) else module(x)


@torch.no_grad()
def halved(rule, x):
    """Temperatures at which about half of the samples have a probability above 1/2."""
    tried = torch.logspace(-4, 1, 200).tolist()

    def halving(z):
        return min(tried, key=lambda t: abs(z.div(t).softmax(1).amax(1).median().item() - 0.5))

    return [None if z is None else halving(z) for z in rule.exits(x)]


CASES = ("mask", "resnet", "sequential", "partly")


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x, memory):
        return self.inner(x).relu() + (x @ memory.T).softmax(-1) @ memory


class Remembers(nn.Module):
    """Three layers that attend to a memory that all samples share."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Attends() for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, x, memory):
        for layer in self.layers:
            x = layer(x, memory)
        return self.head(x)


@pytest.mark.parametrize("shared", [3, 6, 10])
@torch.no_grad()
def test_what_samples_share_stays_whole(shared):
    """A memory of 6 rows, of 10 samples: also where 6 samples are left. And a memory of 10 rows,
    which the example shows to be no row for each sample."""
    torch.manual_seed(0)
    x, memory = torch.randn(10, 8), torch.randn(shared, 8)
    blocks = cut(Remembers(), at=["layers.1", "layers.2"], example=(x[:2], memory))
    rule = rules.DGL(blocks, head=heads.Linear()).eval()
    exits = rule.exits((x, memory))
    left = set()
    for threshold in exits[0].softmax(1).amax(1).tolist() + exits[1].softmax(1).amax(1).tolist():
        scores, taken = EarlyExit(rule, threshold).decide(x, memory)
        wanted = torch.stack([exits[k][row] for row, k in enumerate(taken.tolist())])
        torch.testing.assert_close(scores, wanted)
        left |= {int((taken > k).sum()) for k in (0, 1)}
    assert left >= set(range(1, 10))


@torch.no_grad()
def test_inputs_by_name_have_the_order_of_the_example():
    """The memory of 6 rows comes first, and is not taken for the 10 samples."""
    torch.manual_seed(0)
    x, memory = torch.randn(10, 8), torch.randn(6, 8)
    example = {"x": x[:2], "memory": memory}
    blocks = cut(Remembers(), at=["layers.1", "layers.2"], example=example)
    rule = rules.DGL(blocks, head=heads.Linear()).eval()
    threshold = rule.exits({"x": x, "memory": memory})[0].softmax(1).amax(1).median().item()
    early = EarlyExit(rule, threshold)
    scores, taken = early.decide(x=x, memory=memory)
    assert len(set(taken.tolist())) > 1
    for got in (early.decide(memory=memory, x=x), early.decide(x, memory)):
        assert torch.equal(got[0], scores)
        assert torch.equal(got[1], taken)
    of_six = early.decide(memory=memory, x=x[:6])[0]  # the example shows what has no rows
    torch.testing.assert_close(of_six, scores[:6])


def test_an_example_that_does_not_tell_samples_from_what_they_share():
    x = torch.randn(6, 8)
    blocks = cut(Remembers(), at=["layers.1"], example=(x, torch.randn(6, 8)))
    rule = rules.DGL(blocks, head=heads.Linear())
    before = torch.get_rng_state()
    with pytest.raises(InputError, match="share a tensor of length 6, cut the network with") as e:
        EarlyExit(rule, 0.5)
    assert "\n" not in str(e.value)
    assert torch.equal(torch.get_rng_state(), before)


@torch.no_grad()
def test_the_least_confident_pixel_of_channels_last():
    """(B, H, W, C): a sample leaves when its least confident pixel is sure."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 5))
    x = torch.randn(6, 4, 4, 3)
    rule = rules.DGL(cut(network, "all", example=x)).eval()
    z = rule.exits(x)[0]
    least = z.softmax(-1).amax(-1).flatten(1).amin(1)
    early = EarlyExit(rule, least.median().item())
    assert early.axis == -1
    assert torch.equal(early.confidence(0, z), z.softmax(-1).amax(-1))
    assert torch.equal(early.decide(x)[1] == 0, least >= least.median())
    first = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 5, 1))
    blocks = cut(first, "all", example=x.movedim(-1, 1))
    assert EarlyExit(rules.DGL(blocks).eval(), 0.5).axis == 1


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_the_ends(name):
    """Threshold 0 is the first exit, a threshold above 1 the last, bit for bit."""
    rule, x = case(name)
    exits = rule.exits(x)
    first, last = EarlyExit(rule, 0.0), EarlyExit(rule, 1.1)
    assert torch.equal(called(first, x), exits[first.exits[0]])
    assert torch.equal(called(first, x), called(Exit(rule, first.exits[0]), x))
    assert torch.equal(called(last, x), exits[-1])
    assert called(last.decide, x)[1].tolist() == [len(rule.blocks) - 1] * ROWS
    if isinstance(x, dict):
        assert torch.equal(last(*x.values()), exits[-1])
        with pytest.raises(InputError, match="by position and mask by name"):
            last(x["x"], mask=x["mask"])


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_it_is_the_naive_decision_and_computes_no_more(name):
    """Against all exits of all samples; and every block gets only the samples that go on."""
    rule, x = case(name)
    exits = rule.exits(x)
    temperatures, threshold = halved(rule, x), 0.5
    early = EarlyExit(rule, threshold, temperatures)
    wanted, taken = [], []
    for row in range(ROWS):
        for k, z in enumerate(exits):
            if z is None:
                continue
            sure = (z[row] / temperatures[k]).softmax(0).max() >= threshold
            if sure or k == len(exits) - 1:
                wanted.append(z[row])
                taken.append(k)
                break
    assert len(set(taken)) > 2
    rows: dict[int, int] = {}

    def heads_see(k):
        return lambda module, args, output: rows.__setitem__(k, len(args[0]))

    for k in early.exits[:-1]:
        rule.objectives[k].head.register_forward_hook(heads_see(k))
    scores, found = called(early.decide, x)
    assert found.tolist() == taken
    torch.testing.assert_close(scores, torch.stack(wanted))
    assert rows == {k: sum(t >= k for t in taken) for k in early.exits[:-1] if max(taken) >= k}


@torch.no_grad()
def test_batches_of_many_sizes_need_few_recordings(monkeypatch):
    """Of a network that is not an nn.Sequential, a block by itself needs the shapes before it."""
    rule, x = case("resnet")
    calls = []
    record = alone_module.record_placeholders
    monkeypatch.setattr(
        alone_module, "record_placeholders", lambda *a: (calls.append(len(a[1])), record(*a))[1]
    )
    for rows in range(1, ROWS + 1):
        h = rule.blocks.outputs(x[:rows])
        for k in (1, 2, 3):
            torch.testing.assert_close(rule.blocks[k](h[k - 1]), h[k])
    assert sorted(calls) == [1, 2, 2, 3, 3, 4]


@torch.no_grad()
def test_tokens():
    """A sample leaves with its least confident token, or with the one that is named."""
    torch.manual_seed(0)
    x = torch.randint(0, 11, (6, 8))
    rule = rules.DGL(cut(models.gpt((8,), 11, layers=3, width=16), "all", example=x)).eval()
    z = rule.exits(x)[0]
    p = (z / 0.1).softmax(-1).amax(-1)
    temperatures = [0.1] * len(rule.blocks)
    for position, of_sample in ((None, p.amin(1)), (-1, p[:, -1]), (2, p[:, 2])):
        threshold = of_sample.median().item()
        found = EarlyExit(rule, threshold, temperatures, position=position).decide(x)
        assert torch.equal(found[1] == 0, of_sample >= threshold)
        assert 0 < int((found[1] == 0).sum()) < 6
        assert torch.equal(found[0][found[1] == 0], z[of_sample >= threshold])
    with pytest.raises(InputError, match=r"position=9\): got samples of 8 tokens"):
        EarlyExit(rule, 0.5, position=9)(x)


def one_output():
    blocks = Blocks([nn.Linear(4, 3), nn.Linear(3, 1)], example=torch.zeros(2, 4))
    return rules.DGL(blocks, criterion=nn.MSELoss())


def test_what_it_refuses():
    rule, _ = by_hand()
    for make, says in (
        (lambda: EarlyExit(rule, -0.1), "give a probability"),
        (lambda: EarlyExit(rule, math.nan), "give a probability"),
        (lambda: EarlyExit(rule, "0.5"), "threshold='0.5'"),
        (lambda: EarlyExit(rule, 0.5, [1.0]), "one for each of 3 blocks"),
        (lambda: EarlyExit(rule, 0.5, 1.0), r"temperatures=1.0\): give a list"),
        (lambda: EarlyExit(rule, 0.5, position=0.5), "give a whole number or null"),
        (lambda: EarlyExit(one_output(), 0.5), r"the network gives \(1,\) for each sample"),
        (lambda: Exit(rule, 1.0), "give a whole number"),
        (lambda: EarlyExit(rule, 0.5, [1.0, 0.0, 1.0]), "block '1' predicts"),
        (lambda: EarlyExit(rule, 0.5, [1.0, None, 1.0]), "block '1' predicts"),
        (lambda: EarlyExit(rule, 0.5, position=-1), "leave position out"),
        (lambda: EarlyExit(rules.Backprop(rule.blocks), 0.5), "no block but the last predicts"),
        (lambda: EarlyExit(rules.ForwardForward(networks.cnn().blocks), 0.5), "in order"),
        (lambda: EarlyExit(rules.Backprop(Blocks([nn.Identity()])), 0.5), "give an example"),
    ):
        with pytest.raises(InputError, match=says) as e:
            make()
        assert "\n" not in str(e.value)


# ------------------------------------------------------------------------------------ exports


@pytest.mark.parametrize(
    "name",
    [*(pytest.param(n, marks=pytest.mark.slow) for n in ("sequential", "partly")), "by hand"],
)
@torch.no_grad()
def test_an_export_decides(name):
    """For one sample, and for any number of samples above."""
    rule, x = by_hand() if name == "by hand" else case(name)
    early = EarlyExit(rule, 0.7 if name == "by hand" else 0.5, halved(rule, x)).eval()
    assert len(set(early.decide(x)[1].tolist())) > 1
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(early, (x,), dynamic_shapes=(({0: batch},),))
    conditions = [node for node in program.graph.nodes if "cond" in str(node.target)]
    assert len(conditions) == 1  # the others are within its branch
    for part in (x, x[:2], x[1:3]):
        torch.testing.assert_close(program.module()(part), early(part))
    program = torch.export.export(early, (x[:1],))
    for row in x.split(1):
        torch.testing.assert_close(program.module()(row), early(row))


def test_networks_that_are_not_exported():
    rule, x = case("resnet")
    with pytest.raises(InputError, match=r"is not an nn\.Sequential"):
        torch.export.export(EarlyExit(rule, 0.5).eval(), (x,))


# ------------------------------------------------------------------------------- on a data set


def batches(x, y):
    return SimpleNamespace(
        tokens=False, size=len(x), epoch=lambda e: [(x[:2], y[:2]), (x[2:], y[2:])]
    )


def test_predictions_by_hand():
    """Classes are 1, 1, 0 at exits 0 and 2 (of scores that are equal the first), and 0, 0, 1 at
    exit 1; labels 1, 1, 1."""
    rule, x = by_hand()
    loader = batches(x, torch.tensor([1, 1, 1]))
    found = predictions(rule, loader, fabric_for("cpu"), [1.0, 1.0, 1.0])
    assert found.blocks == (0, 1, 2)
    assert found.classes.tolist() == [[1, 1, 0], [0, 0, 1], [1, 1, 0]]
    assert found.confidence[0].tolist() == pytest.approx([3 / 5, 27 / 29, 3 / 7])
    assert found.confidence[1].tolist() == pytest.approx([9 / 19, 729 / 1459, 9 / 11])
    assert found.agreement.tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert found.agree.tolist() == [False] * 3
    assert found.taken(0.7).tolist() == [2, 0, 1]
    assert found.at(0.7, [10, 20, 60]) == {
        "threshold": 0.7,
        "accuracy": 1.0,
        "flops": pytest.approx(30.0),
        "shares": pytest.approx([1 / 3] * 3),
    }
    assert found.at(0.94)["accuracy"] == pytest.approx(2 / 3)
    assert found.at(0.0)["shares"] == [1, 0, 0]
    assert found.at(1.1)["shares"] == [0, 0, 1]


def test_predictions_that_are_none():
    rule, x = by_hand()
    cpu, loader = fabric_for("cpu"), batches(x, torch.tensor([1, 1, 1]))
    none = batches(x, torch.full((3,), -100))
    found = predictions(rule, loader, cpu)
    for call, says in (
        (lambda: predictions(rule, loader, cpu, [1.0]), "one for each of 3 blocks"),
        (lambda: predictions(rule, loader, cpu, [1.0, None, 1.0]), "block '1' predicts"),
        (lambda: predictions(rule, loader, cpu, [1.0, 0, 1.0]), "block '1' predicts"),
        (lambda: predictions(rule, none, cpu), r"predictions\(loader\): no label counts"),
        (lambda: fit_temperatures(rule, none, cpu), "fit_temperatures.*no label counts"),
        (lambda: found.at(math.nan), "threshold=nan.: give a probability"),
        (lambda: found.at(0.5, [1, 2]), "a number for each of the 3 exits"),
        (lambda: found.at(0.5, [None] * 3), "a number for each of the 3 exits"),
        (lambda: cheapest([]), "there is no exit"),
        (lambda: cheapest([None, None]), "there is no exit"),
        (lambda: cheapest([{"accuracy": 0.5}]), "an exit has no 'flops'"),
        (lambda: cheapest([{"accuracy": None, "flops": 3}]), "an exit has no 'accuracy'"),
    ):
        with pytest.raises(InputError, match=says) as e:
            call()
        assert "\n" not in str(e.value)


def test_the_table_is_what_the_network_does():
    rule, x = case("partly")
    y = torch.arange(ROWS) % 10
    loader, fabric = batches(x, y), fabric_for("cpu")
    temperatures = fit_temperatures(rule, loader, fabric)
    exits = [None if z is None else temperature(z, y) for z in rule.exits(x)]
    assert [t is None for t in temperatures] == [
        False,
        True,
        False,
        *[True] * (len(exits) - 4),
        False,
    ]
    given = [(t, e) for t, e in zip(temperatures, exits, strict=True) if t is not None]
    assert [t for t, _ in given] == pytest.approx([e for _, e in given], rel=1e-5)
    found = predictions(rule, loader, fabric, temperatures)
    threshold = found.confidence[:-1].median().item()
    scores, taken = EarlyExit(rule, threshold, temperatures).decide(x)
    wanted = torch.tensor(found.blocks)[found.taken(threshold)]
    assert torch.equal(taken, wanted)
    right = (scores.argmax(1) == y).double().mean().item()
    assert found.at(threshold)["accuracy"] == pytest.approx(right)


def test_costs_of_deciding():
    """A sample pays for all heads on its way; block 1 does not predict, and the last has none."""
    flops = ((100, 5), (200, 7), (300, 9), (400, 3))
    costs = Costs(tuple(BlockCost("", (1,), 0, f, 0, head) for f, head in flops))
    assert costs.deciding([0, 2, 3]) == [105, 614, 1014]
    assert [costs.up_to(k)[1] for k in (0, 2, 3)] == [105, 609, 1000]


def test_a_network_is_no_rule():
    for make in (lambda: EarlyExit(nn.Linear(2, 2), 0.5), lambda: Exit(nn.Linear(2, 2), 0)):
        with pytest.raises(InputError, match=r"Exit\(rule=Linear.*: give a rule"):
            make()
