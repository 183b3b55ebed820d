"""Objectives add and scale, and each has its own head."""

from __future__ import annotations

import copy

import networks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import MeanSquare, assert_close, grads
from torch import Tensor, nn

from layerwise import Batch, Blocks, InputError, Rule, heads, objectives, rules
from layerwise.objectives import Activity, Classify, Objective, Site, Sum


class Constant(Objective):
    """value * mean(h): a term whose part in a sum can be read off."""

    def __init__(self, value: float):
        super().__init__()
        self.value = value
        self.calls = 0
        self.sites: list[Site] = []

    def build(self, site: Site) -> None:
        self.sites.append(site)

    def forward(self, activity: Activity, batch: Batch) -> Tensor:
        self.calls += 1
        return self.value * activity.output.mean()


H = Activity(torch.ones(2, 3))
BATCH = Batch(H.output, torch.zeros(2, dtype=torch.long))


def _weights(objective: Objective) -> tuple[float, ...]:
    assert isinstance(objective, Sum)
    return objective.weights


def test_algebra() -> None:
    a, b, c = Constant(1.0), Constant(10.0), Constant(100.0)
    assert (a + b)(H, BATCH).item() == 11
    assert (2 * a)(H, BATCH).item() == (a * 2)(H, BATCH).item() == 2
    nested = 2 * (a + 3 * (b + 0.5 * c))
    assert _weights(nested) == (2.0, 6.0, 3.0)
    assert nested(H, BATCH).item() == 2 + 60 + 300
    assert sum([a, b, c])(H, BATCH).item() == 111  # type: ignore[union-attr]
    assert sum([0.5 * a, 0.5 * b])(H, BATCH).item() == 5.5  # type: ignore[union-attr]
    assert sum([a]) is a
    assert (a + a)(H, BATCH).item() == 2
    assert (a + -1 * b)(H, BATCH).item() == -9
    assert list(nested.terms) == [a, b, c]  # terms are the objects given, not copies


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(-4, 4), st.floats(-4, 4)), min_size=1, max_size=5))
def test_sums_are_sums(pairs: list[tuple[float, float]]) -> None:
    objective = sum((w * Constant(v) for w, v in pairs), 0 * Constant(1.0))
    wanted = sum(w * v for w, v in pairs)
    assert objective(Activity(H.output.double()), BATCH).item() == pytest.approx(wanted, abs=1e-9)  # type: ignore[operator]


@pytest.mark.parametrize("other", [3, "x", None, nn.Linear(1, 1), torch.ones(())])
def test_what_does_not_add(other: object) -> None:
    with pytest.raises(TypeError):
        Constant(1.0) + other  # type: ignore[operator]


def test_objectives_do_not_multiply() -> None:
    with pytest.raises(TypeError):
        Constant(1.0) * Constant(1.0)  # type: ignore[operator]


def test_zero_weight_is_not_computed() -> None:
    case = networks.mlp()
    off = Classify(heads.Linear())
    rule = rules.Greedy(case.blocks, [0 * off + 1.0 * MeanSquare(), 0.0 * Constant(1.0)])
    ran: list[str] = []
    for name, module in rule.objectives.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    report = rule.backward(case.x, case.y)
    assert not [name for name in ran if "head" in name and name.startswith("0")]
    (constant,) = [m for m in rule.modules() if isinstance(m, Constant)]
    assert constant.calls == 0
    head = [n for n, _ in rule.named_parameters() if n.startswith("objectives.0.")]
    assert head
    assert grads(rule).keys() == {
        n for n, _ in rule.named_parameters() if n not in head and not n.startswith("blocks.1.")
    }
    assert report.local_losses[1] == 0
    assert report.local_logits[0] is None
    exits = rule.exits(case.x)
    assert exits[0] is None  # an untrained head does not predict
    assert exits[1] is None
    assert torch.equal(exits[2], rule(case.x))


def test_negative_weight_turns_the_gradient() -> None:
    case = networks.mlp(torch.float64)
    rule = rules.Greedy(case.blocks, MeanSquare())
    other = rules.Greedy(copy.deepcopy(case.blocks), -1 * MeanSquare())
    rule.backward(case.x, case.y)
    other.backward(case.x, case.y)
    last = len(case.blocks) - 1
    sign = {n: 1 if n.startswith(f"blocks.{last}.") else -1 for n in grads(rule)}
    assert_close(grads(other), {n: sign[n] * g for n, g in grads(rule).items()})


def test_the_first_prediction_counts() -> None:
    """Two classifiers in one sum: the first is what the block predicts, in report and exits."""
    case = networks.mlp()
    both = 0.5 * Classify(heads.Linear()) + 0.5 * Classify(heads.MLP(width=4))
    rule = rules.Greedy(case.blocks, both)
    report = rule.backward(case.x, case.y)
    h = case.blocks[0](case.x)
    for scores in (report.local_logits[0], rule.exits(case.x)[0]):
        assert torch.equal(scores, rule.objectives[0].terms[0].head(h))
    assert len(report.local_logits) == 3


def test_site() -> None:
    case = networks.cnn()
    rule = rules.Greedy(case.blocks, 1.0 * Constant(1.0))
    sites = [m.sites for m in rule.modules() if isinstance(m, Constant)]
    shapes = [tuple(s) for s in case.blocks.shapes[:-1]]
    assert sites == [[Site(i, 4, shape, shape, (2, 8, 8), (3,))] for i, shape in enumerate(shapes)]
    h = case.x
    for block, shape in zip(case.blocks, shapes, strict=False):
        h = block(h)
        assert h.shape[1:] == shape


def _heads(rule: Rule) -> list[int]:
    return [id(m) for m in rule.objectives.modules() if isinstance(m, nn.Linear)]


@pytest.mark.parametrize("spelling", ["one", "listed", "inside", "shared by two rules"])
def test_blocks_never_share_a_head(spelling: str) -> None:
    case = networks.mlp()
    c = Classify(heads.Linear())
    if spelling == "one":
        rule = rules.Greedy(case.blocks, c)
    elif spelling == "listed":
        rule = rules.Greedy(case.blocks, [c, c])
    elif spelling == "inside":
        rule = rules.Greedy(case.blocks, [0.3 * c + 0.1 * MeanSquare(), 0.7 * c])
    else:
        rules.Greedy(copy.deepcopy(case.blocks), c)
        rule = rules.Greedy(case.blocks, c)
    assert len(_heads(rule)) == len(set(_heads(rule))) == 2
    rule.backward(case.x, case.y)
    assert grads(rule).keys() == dict(rule.named_parameters()).keys()


@pytest.mark.parametrize("blocks", [2, 3])
def test_one_objective_is_a_pattern_of_which_blocks_get_copies(blocks: int) -> None:
    case = networks.mlp(blocks=blocks)
    c = Classify(heads.Linear())
    for _ in range(2):  # two rules from one pattern
        rule = rules.Greedy(case.blocks, c)
        assert len(_heads(rule)) == blocks - 1
    assert isinstance(c.head, nn.Identity)


def test_an_objective_belongs_to_one_rule() -> None:
    """Another rule must not take the head that the first one's optimizer holds."""
    case = networks.mlp()
    given = [Classify(heads.Linear()), MeanSquare()]
    rule = rules.Greedy(case.blocks, given)
    with pytest.raises(
        InputError, match=r"Classify: this objective already has its auxiliary network"
    ) as e:
        rules.Greedy(case.blocks, given)
    assert "\n" not in str(e.value)
    assert rule.objectives[0] is given[0]


@pytest.mark.parametrize("container", [list, tuple, iter, nn.ModuleList])
def test_objectives_in_any_container(container: type) -> None:
    case = networks.mlp()
    given = [Classify(heads.Linear()), MeanSquare()]
    rule = rules.Greedy(case.blocks, container(given))
    assert [rule.objectives[i] for i in range(2)] == given


def test_a_head_may_not_change_what_the_next_block_takes() -> None:
    def rectify(in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> nn.Module:
        return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(in_shape[0], out_shape[-1]))

    x, y = torch.randn(4, 6), torch.randint(0, 3, (4,))
    blocks = Blocks(_net(), example=x, names=["first", "second", "third"])
    rule = rules.DGL(blocks, head=rectify)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"DGL: the objective of block 'first' changes") as e:
        rule.backward(x, y)
    assert "\n" not in str(e.value)


def test_given_objectives_are_used_as_they_are() -> None:
    """One per block: the objects given are the rule's, so that they can be read."""
    case = networks.mlp()
    given = [Classify(heads.Linear()), MeanSquare()]
    rule = rules.Greedy(case.blocks, given)
    assert [rule.objectives[i] for i in range(2)] == given
    assert isinstance(given[0].head, nn.Sequential)


def test_last_objective_may_be_given() -> None:
    case = networks.mlp(torch.float64)
    rule = rules.Greedy(case.blocks, [MeanSquare(), MeanSquare(), 3 * MeanSquare()])
    report = rule.backward(case.x, case.y)
    logits = case.model(case.x)
    torch.testing.assert_close(report.loss, 3 * logits.square().mean().detach())
    assert torch.equal(rule.exits(case.x)[-1], rule(case.x))
    assert report.local_logits == (None, None, None)


def test_last_head_does_not_change_the_prediction() -> None:
    case = networks.mlp()
    rule = rules.Greedy(case.blocks, [MeanSquare(), MeanSquare(), Classify(heads.Linear())])
    rule.backward(case.x, case.y)
    assert torch.equal(rule.exits(case.x)[-1], rule(case.x))


def test_heads_lie_where_their_block_does() -> None:
    """Also after a block without weights, and in the network's own precision."""
    parts = [nn.ReLU(), nn.Linear(6, 5).double(), nn.ReLU(), nn.Linear(5, 3).double()]
    x, y = torch.randn(4, 6).double(), torch.randint(0, 3, (4,))
    rule = rules.DGL(Blocks(parts, example=x))
    assert {p.dtype for p in rule.parameters()} == {torch.float64}
    rule.backward(x, y)
    assert grads(rule).keys() == dict(rule.named_parameters()).keys()


def _net() -> list[nn.Module]:
    return [nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)]


def _tokens() -> list[nn.Module]:
    """One token between the blocks, (B, 1, 5)."""
    return [nn.Sequential(nn.Linear(6, 5), nn.Unflatten(1, (1, 5))), nn.Flatten()]


X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))

REFUSED = {
    "too few objectives": (
        lambda: rules.Greedy(Blocks(_net(), example=X), [MeanSquare()]),
        r"Greedy\(objectives\): got 1 for 3 blocks; give 3, or 2",
    ),
    "too many objectives": (
        lambda: rules.Greedy(Blocks(_net(), example=X), [MeanSquare()] * 4),
        r"Greedy\(objectives\): got 4 for 3 blocks",
    ),
    "no objectives": (
        lambda: rules.Greedy(Blocks(_net(), example=X), []),
        r"Greedy\(objectives\): got 0 for 3 blocks",
    ),
    "a head for an objective": (
        lambda: rules.Greedy(Blocks(_net(), example=X), heads.Linear()),
        r"Greedy\(objectives\): got Linear; give an objective",
    ),
    "a list with a head": (
        lambda: rules.Greedy(Blocks(_net(), example=X), [MeanSquare(), heads.MLP()]),
        r"Greedy\(objectives\): got MLP; give an objective",
    ),
    "a name for an objective": (
        lambda: rules.Greedy(Blocks(_net(), example=X), "classify"),
        r"Greedy\(objectives\): got str; give an objective",
    ),
    "wrong number of classes": (
        lambda: rules.DGL(Blocks(_net(), example=X), num_classes=10),
        r"DGL\(num_classes=10\): the network gives \(3,\)",
    ),
    "a model for DGL": (
        lambda: rules.DGL(nn.Sequential(*_net()), num_classes=3),
        r"DGL\(blocks\): got Sequential; a rule takes Blocks: layerwise\.cut\(",
    ),
    "a model without length": (
        lambda: rules.DGL(nn.Linear(2, 2)),
        r"DGL\(blocks\): got Linear",
    ),
    "a model for Greedy": (
        lambda: rules.Greedy(nn.Linear(2, 2), MeanSquare()),
        r"Greedy\(blocks\): got Linear",
    ),
    "a model for Backprop": (
        lambda: rules.Backprop(nn.Linear(2, 2)),
        r"Backprop\(blocks\): got Linear",
    ),
    "a list for Backprop": (
        lambda: rules.Backprop(_net()),
        r"Backprop\(blocks\): got list",
    ),
    "heads without shapes": (
        lambda: rules.DGL(Blocks(_net())),
        r"DGL\(blocks\): the shapes .* give an example: Blocks\(\[\.\.\.\], example=x\)",
    ),
    "a head in a sum without shapes": (
        lambda: rules.Greedy(Blocks(_net()), 0.5 * Classify(heads.Linear()) + MeanSquare()),
        r"Greedy\(blocks\): the shapes .* give an example",
    ),
    "a head that needs maps": (
        lambda: rules.DGL(Blocks(_tokens(), example=X), head=heads.MLPSR()),
        r"heads\.MLPSR: a block gives \(1, 5\) for each sample, which is not feature maps",
    ),
}


@pytest.mark.parametrize("asked", REFUSED)
def test_refusals_are_one_line(asked: str) -> None:
    call, message = REFUSED[asked]
    with pytest.raises(InputError, match=message) as e:
        call()  # type: ignore[no-untyped-call]
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 250


def test_no_example_is_needed_without_heads() -> None:
    """Backprop, one block, and objectives that have no head."""
    x, y = torch.randn(4, 6), torch.randint(0, 3, (4,))
    for rule in (
        rules.Backprop(Blocks(_net())),
        rules.Greedy(Blocks(_net()), MeanSquare()),
        rules.DGL(Blocks([nn.Sequential(*_net())])),
        rules.Greedy(Blocks(_net()), [objectives.Classify(), MeanSquare()]),
    ):
        report = rule.backward(x, torch.zeros_like(y))
        assert report.logits.shape == (4, 3)
        assert grads(rule).keys() == dict(rule.named_parameters()).keys()
