"""`bench step`: FLOPs by hand, memory that falls as it must, results that survive a file."""

import copy
import functools
import io
import json

import pytest
import torch
from rich.console import Console
from torch import nn

from layerwise import heads, models, objectives, rules
from layerwise.blocks import Blocks
from layerwise.cli import main
from layerwise.costs import Contender, StepTable, compare_steps, markdown, measure
from layerwise.costs.flops import count_flops
from layerwise.costs.measure import Step
from layerwise.costs.ways import BACKPROP, LOCAL, Way, rivals
from layerwise.errors import InputError

B, D, CLASSES, LAYERS = 4, 16, 3, 4
dgl = functools.partial(rules.DGL, head=heads.Linear())


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


@pytest.fixture
def network():
    layers = [nn.Sequential(nn.Linear(D, D), nn.ReLU()) for _ in range(LAYERS)]
    return nn.Sequential(*layers, nn.Linear(D, CLASSES))


@pytest.fixture
def batch():
    return torch.randn(B, D), torch.randint(CLASSES, (B,))


def test_flops_of_backprop(network, batch):
    # A linear layer: 2 B I O each for h, dW and dx; the first layer computes no dx.
    rule = rules.Backprop(Blocks(network))
    layer, last = 2 * B * D * D, 2 * B * D * CLASSES
    flops = count_flops(lambda: rule.backward(*batch), rule)
    assert flops.total == (3 * LAYERS - 1) * layer + 3 * last
    assert flops.heads == 0


def test_flops_of_checkpointing(network, batch):
    # Every linear layer's forward once more, but the last's needs nothing run again.
    rule = rules.Backprop(Blocks(network), checkpoint=True)
    layer, last = 2 * B * D * D, 2 * B * D * CLASSES
    flops = count_flops(lambda: rule.backward(*batch), rule)
    assert (4 * LAYERS - 1) * layer + 3 * last <= flops.total
    assert flops.total <= (4 * LAYERS - 1) * layer + 4 * last


def test_flops_of_a_local_rule(network, batch):
    # No block computes its input's gradient; a head costs 3 x 2 B D C, the last block's none.
    rule = dgl(Blocks(network, example=batch[0]))
    layer, last = 2 * B * D * D, 2 * B * D * CLASSES
    flops = count_flops(lambda: rule.backward(*batch), rule)
    assert flops.heads == 3 * LAYERS * last
    assert flops.total == 2 * LAYERS * layer + 2 * last + flops.heads


def test_flops_of_the_direct_global_gradient(network, batch):
    # As of a local rule: what is mixed at the scores is no product of matrices.
    rule = rules.DirectGlobal(Blocks(network, example=batch[0]), head=heads.Linear())
    layer, last = 2 * B * D * D, 2 * B * D * CLASSES
    flops = count_flops(lambda: rule.backward(*batch), rule)
    assert flops.heads == 3 * LAYERS * last
    assert flops.total == 2 * LAYERS * layer + 2 * last + flops.heads


@pytest.mark.parametrize("context", [False, True])
def test_flops_of_synthetic_gradients(network, batch, context):
    # Every block but the first computes its input's gradient, which its synthesizer is to learn:
    # dx for all layers but the first. Of a synthesizer's 3 layers only the first computes no dx;
    # the labels' layer is a row of its weight.
    rule = rules.DNI(Blocks(network, example=batch[0]), context=context)
    layer, last = 2 * B * D * D, 2 * B * D * CLASSES
    flops = count_flops(lambda: rule.backward(*batch), rule)
    assert flops.heads == LAYERS * 8 * layer
    assert flops.head_forwards == (3 * layer,) * LAYERS + (0,)
    assert flops.total == (3 * LAYERS - 1) * layer + 3 * last + flops.heads


def test_flops_of_what_reads_before_the_pooling():
    # One convolution of 3x3 from 1 to 2 channels on 4x4; the decoder is one from 2 to 1.
    layer = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(2))
    x = torch.randn(B, 1, 4, 4)
    blocks = Blocks([layer, nn.Sequential(nn.Flatten(), nn.Linear(8, CLASSES))], example=x)

    def decoder(in_shape, out_shape):
        return nn.Conv2d(in_shape[0], out_shape[0], 3, padding=1)

    rule = rules.Greedy(blocks, objectives.Reconstruct(decoder))
    convolution, last = 2 * B * 16 * 9 * 2, 2 * B * 8 * CLASSES
    flops = count_flops(lambda: rule.backward(x, torch.zeros(B).long()), rule)
    assert flops.heads == 3 * convolution
    assert flops.head_forwards == (convolution, 0)
    assert flops.total == 2 * convolution + 2 * last + flops.heads


def test_flops_of_attention_are_counted():
    # For each sample: QK' and PV, 2 T T D each; backward 5 products where forward has 2.
    t, d = 64, 8
    qkv = torch.randn(1, 3, 2, t, d, requires_grad=True)

    def step():
        torch.nn.functional.scaled_dot_product_attention(*qkv.unbind(1)).sum().backward()

    assert count_flops(step).total == 7 * 2 * (2 * t * t * d)


@pytest.mark.parametrize("when", ["end", "early"])
def test_when_parameters_are_stepped_does_not_change_the_step(network, batch, when):
    rule = rules.Backprop(Blocks(network))
    initial = [p.detach().clone() for p in rule.parameters()]
    rule.backward(*batch)
    expected = [w - 0.1 * p.grad for w, p in zip(initial, rule.parameters(), strict=True)]
    rule.zero_grad()
    measure([Contender("", rule, when)], *batch, lambda ps: _Once(ps), rounds=1)
    for p, want in zip(rule.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), want)
        assert p.grad is None
        assert not p._post_accumulate_grad_hooks


class _Once(torch.optim.SGD):
    """Steps every parameter once, as `measure` takes several steps."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.1)

    def step(self):
        super().step()
        self.param_groups[0]["lr"] = 0.0


def test_memory_of_a_local_rule(network, batch):
    # Momentum of all throughout; gradients at most of one block and its head; nothing at rest
    # but momentum.
    rule = dgl(Blocks(network, example=batch[0]))
    local, whole = measure(
        [Contender("block", rule, "early"), Contender("end", rule, "end")], *batch, sgd, rounds=1
    )
    momentum = 2 * sum(4 * p.numel() for p in rule.parameters())  # two contenders' optimizers
    one_block = 4 * (D * D + D + D * CLASSES + CLASSES)
    assert local.at_rest_bytes == whole.at_rest_bytes == momentum / 2
    assert local.peak.optimizer == momentum / 2
    assert local.peak.gradients <= one_block
    assert whole.peak.gradients > one_block
    assert local.peak.bytes < whole.peak.bytes
    assert local.head_parameters == LAYERS * (D * CLASSES + CLASSES)


def test_comparison():
    torch.manual_seed(0)
    network = models.resnet20(width=0.25)
    before = [p.clone() for p in network.parameters()]
    x, y = torch.randn(4, 3, 16, 16), torch.randint(10, (4,))
    table = compare_steps(network, dgl, x, y, blocks=4, rounds=2)
    backprop, checkpointing, local = table.contenders
    assert [len(c.times_s) for c in table.contenders] == [2] * 3
    assert table.time_ratios(backprop) == [1.0, 1.0]
    assert checkpointing.flops > backprop.flops > local.flops - local.head_flops
    assert local.peak.bytes < checkpointing.peak.bytes < backprop.peak.bytes
    assert backprop.head_parameters == 0 < local.head_parameters
    for p, was in zip(network.parameters(), before, strict=True):
        assert torch.equal(p, was)
        assert p.grad is None


@pytest.mark.slow  # compiles
def test_every_way_makes_the_same_step():
    """The weights after a step are backpropagation's, or the local rule's in the plain loop: equal
    where the same operations run, and to rounding where batches are divided or compiled. Under
    `turns` the active blocks' weights are, and the others stay."""
    torch.manual_seed(0)
    network = models.vit(shape=(3, 8, 8), layers=3, width=16, heads=2, patch=4)
    x, y = torch.randn(4, 3, 8, 8), torch.randint(10, (4,))

    def after(way):
        made = way.contender(network, dgl, x, y, blocks=4, segments=4, balance="flops", seed=0)
        before = {n: p.detach().clone() for n, p in made.rule.blocks.named_parameters()}
        Step(made, x, y, lambda parameters: torch.optim.SGD(parameters, 1.0))()
        return before, {n: p.detach() for n, p in made.rule.blocks.named_parameters()}

    plain = {BACKPROP: after(Way())[1], LOCAL: after(Way(LOCAL))[1]}
    ways = rivals((2, 4), 4)
    assert {way.family for way in ways} == {BACKPROP, LOCAL}
    for way in ways:
        before, weights = after(way)
        moved = 0
        for name, wanted in zip(weights, plain[way.family].values(), strict=True):
            if way.turns > 1 and torch.equal(weights[name], before[name]):
                continue
            moved += 1
            if way.micro == 1 and way.budget is None:
                assert torch.equal(weights[name], wanted), (way, name)
            else:
                torch.testing.assert_close(weights[name], wanted, atol=1e-5, rtol=1e-4)
        assert 0 < moved < len(weights) if way.turns > 1 else moved == len(weights)


def test_accumulation_block_by_block(network, batch):
    """The gradients of one `backward` for each micro-batch, bit for bit; each block is stepped
    before the next one runs, so only one block has gradients at a time."""
    x, y = batch
    parts = [(x[:3], y[:3]), (x[3:], y[3:])]
    one, two = (dgl(Blocks(copy.deepcopy(network), example=x)) for _ in range(2))
    two.load_state_dict(one.state_dict())
    for part, share in zip(parts, (3 / 4, 1 / 4), strict=True):
        one.backward(*part, scale=lambda loss, s=share: loss * s)
    found = {}

    def done(k):
        assert all(p.grad is None for j in range(k + 1, LAYERS) for p in two.parameters_of(j))
        found[k] = [p.grad.clone() for p in two.parameters_of(k)]
        two.zero_grad()

    two.accumulate(parts, on_block=done)
    for k in range(LAYERS + 1):
        for p, grad in zip(one.parameters_of(k), found[k], strict=True):
            assert torch.equal(p.grad, grad)
    with pytest.raises(InputError, match="accumulate"):
        rules.DNI(Blocks(network, example=x)).accumulate(parts)


@pytest.mark.parametrize("counts", ["4,16", "[4,16]", "4"])
def test_numbers_of_micro_batches_on_the_command_line(counts: str, capsys) -> None:
    """They are read, so that the refusal is of what comes after."""
    assert main(["bench", "step", "--micro_batches", counts, "--shape", "1,8"]) == 2
    assert "--shape [1, 8]" in capsys.readouterr().err


def test_what_rivals_cost(network):
    """By hand: 4 micro-batches execute backpropagation's FLOPs and keep a quarter of activations;
    with a quarter's state at a time the optimizer keeps at most 2 of 5 layers."""
    rows = 400
    batch = torch.randn(rows, D), torch.randint(CLASSES, (rows,))
    ways = [Way(), Way(micro=4), Way(turns=4), Way(checkpoint="selective")]
    options = {"blocks": "all", "segments": "all", "balance": "flops", "seed": 0}
    made = [way.contender(network, dgl, *batch, **options) for way in ways]
    plain, micro, turns, selective = measure(made, *batch, sgd, rounds=1)
    assert micro.flops == plain.flops
    assert micro.activation_peak_bytes < 0.3 * plain.activation_peak_bytes
    layer = 4 * (D * D + D)
    assert turns.peak.optimizer <= 2 * layer < plain.peak.optimizer
    assert selective.flops <= plain.flops + 2 * rows * D * CLASSES  # no product runs again


@pytest.fixture
def table(network, batch):
    return compare_steps(network, dgl, *batch, rounds=2, title="chain")


def test_a_saved_table_is_read_back(table, tmp_path):
    path = tmp_path / "results" / "step.json"
    table.save(path)
    assert StepTable.load(path) == table
    saved = json.loads(path.read_text())
    assert saved["threads"] == torch.get_num_threads()
    assert len(saved["contenders"][2]["time_ratios"]) == 2
    assert str(tmp_path) not in path.read_text()


def test_markdown(table, tmp_path):
    table.save(tmp_path / "step.json")
    lines = markdown([tmp_path / "step.json"]).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert "chain, 4x16" in rows[2]
    assert "Linear(pool=2, features=None, bias=True, fixed=False)" in rows[4]


def test_the_table_fits_a_terminal(table):
    console = Console(width=80, file=io.StringIO())
    with console.capture() as capture:
        console.print(table)
    assert "checkpointing" in capture.get()
    assert all(len(line) <= 80 for line in capture.get().splitlines())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds=0"),
        ({"warmup": -1}, "warmup=-1"),
        ({"channels_last": True}, "channels_last"),
    ],
)
def test_errors(network, batch, options, message):
    with pytest.raises(InputError, match=message):
        compare_steps(network, dgl, *batch, **options)


def test_labels_that_do_not_fit(network, batch):
    with pytest.raises(InputError, match="4 inputs and 3 labels"):
        compare_steps(network, dgl, batch[0], batch[1][:3])


@pytest.mark.parametrize("content", ["{}", "[]", "no json", '{"benchmark": "stages"}'])
def test_files_that_are_not_results(tmp_path, content):
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(InputError, match="not a result"):
        markdown([tmp_path / "other.json"])
    with pytest.raises(InputError, match="give a file"):
        markdown([tmp_path / "absent.json"])
