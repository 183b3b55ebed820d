"""Every rule on labels of every kind: it does what they mean, or refuses them in one line."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable

import networks
import pytest
import torch
from networks import (
    CLASSES,
    NOT_BACKPROPAGATION,
    OWN_NETWORKS,
    RULES,
    Case,
    assert_close,
    assert_same,
    grads,
)
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise import Batch, Blocks, InputError, Rule, cut, heads, objectives, rules

Make = Callable[[Blocks], Rule]
OWN = {name: (case, make) for case, ways in OWN_NETWORKS.values() for name, make in ways.items()}
# The library's own synthesizer, which reads labels of every kind.
SYNTHESIZER = heads.Synthesizer(layers=1, kernel_size=1)
ALL_RULES = {
    **networks.ALL_RULES,
    "cdni": lambda blocks: rules.DNI(blocks, SYNTHESIZER, context=True),
}
NAMES = [*ALL_RULES, *OWN]
EMBEDS = ("forward_forward", "forward_forward_hard")  # labels in inputs: class numbers alone


def made(name: str) -> tuple[Case, Rule]:
    if name in OWN:
        network, make = OWN[name]
        case = network(torch.float64)
    else:
        case, make = networks.plain_cnn(torch.float64), ALL_RULES[name]
    return case, make(case.blocks)


def stepped(name: str, change: Callable[[Tensor], Tensor]) -> tuple[dict[str, Tensor], list]:
    """The gradients of a step, and its losses; everything drawn is the same each time."""
    torch.manual_seed(0)
    case, rule = made(name)
    torch.manual_seed(1)
    report = rule.backward(case.x, change(case.y))
    losses = [loss for loss in report.local_losses if loss is not None]
    assert all(loss.isfinite() for loss in losses)
    return grads(rule), losses


def one_hot(y: Tensor) -> Tensor:
    return F.one_hot(y, CLASSES)


def refused(step: Callable[[], object]) -> str | None:
    """The one line of an InputError; None where there is none. Nothing else may be raised."""
    said = None
    try:
        step()
    except InputError as error:
        said = str(error)
    assert said is None or "\n" not in said
    return said


@pytest.mark.parametrize("name", NAMES)
def test_integers_of_any_type_and_one_hot_ones_are_class_numbers(name: str) -> None:
    wanted, losses = stepped(name, lambda y: y)
    kinds = [torch.int32, torch.int16, torch.int8, torch.uint8]
    changes = [functools.partial(torch.Tensor.to, dtype=dtype) for dtype in kinds]
    for change in (*changes, one_hot, lambda y: one_hot(y).bool(), lambda y: one_hot(y).byte()):
        got, also = stepped(name, change)
        assert_same(got, wanted)
        assert torch.equal(torch.stack(also), torch.stack(losses))


@pytest.mark.parametrize("name", NAMES)
def test_real_one_hot_labels_give_what_class_numbers_give(name: str) -> None:
    if name in EMBEDS:
        error = refused(lambda: stepped(name, lambda y: one_hot(y).double()))
        assert error is not None
        assert "y.argmax(1)" in error
        return
    wanted, losses = stepped(name, lambda y: y)
    for dtype in (torch.float64, torch.float32):
        got, also = stepped(name, lambda y, dtype=dtype: one_hot(y).to(dtype))
        assert_close(got, wanted, atol=1e-9)
        torch.testing.assert_close(torch.stack(also), torch.stack(losses))


# Rules whose gradient is linear in the labels, when all else is as it was: that of mixed labels is
# the mixture of the gradients.
LINEAR = [
    *("aug_local", "backprop", "backprop_checkpointed", "deep_supervision", "dgl"),
    *(name for name in ALL_RULES if name.startswith("direct_feedback_alignment")),
    *("direct_global", "direct_random_target_projection", "feedback_alignment"),
    *("forward_gradient", "greedy", "kolen_pollack", "last_block", "local_forward_gradient"),
    *("local_forward_gradient_weights", "man", "man_scaled", "mono_forward", "overlap"),
    *("hpff", "sequential", "shared_readout", "last_readout", "sign_symmetry"),
    *("sign_symmetry_fixed", "spsa", "spsa_subspace"),
]


@pytest.mark.parametrize("name", LINEAR)
def test_gradients_of_soft_labels_are_mixtures(name: str) -> None:
    (first, _), (second, _) = stepped(name, lambda y: y), stepped(name, lambda y: y.flip(0))
    got, _ = stepped(name, lambda y: 0.75 * one_hot(y).double() + 0.25 * one_hot(y.flip(0)))
    wanted = {key: 0.75 * g + 0.25 * second[key] for key, g in first.items()}
    assert_close(got, wanted, atol=1e-9)


@pytest.mark.parametrize("name", sorted({*NAMES} - {*LINEAR} - {*EMBEDS}))
def test_soft_labels_give_numbers(name: str) -> None:
    got, _ = stepped(name, lambda y: 0.75 * one_hot(y).double() + 0.25 * one_hot(y.flip(0)))
    assert all(g.isfinite().all() for g in got.values())


# Rules under which a sample whose label does not count asks for nothing at all, so that the
# gradient is that of the batch without it. The others average something over all samples that needs
# no label (inverses, synthesizers), or square a sample's error, whose share of the mean is larger.
WITHOUT = [name for name in LINEAR if name not in ("forward_gradient", "spsa_subspace")]
WITHOUT = [name for name in WITHOUT if not name.startswith("local_forward_gradient")]
WITHOUT.remove("greedy")  # its mean square reads no label


@pytest.mark.parametrize("name", WITHOUT)
def test_what_is_not_to_count_does_not(name: str) -> None:
    def step(samples: slice, ignored: slice) -> tuple[dict[str, Tensor], Tensor | None]:
        torch.manual_seed(0)
        case, rule = made(name)
        torch.manual_seed(1)
        y = case.y.clone()
        y[ignored] = -100
        report = rule.backward(case.x[samples], y[samples])
        return grads(rule), report.loss

    got, loss = step(slice(0, 6), slice(4, 6))
    wanted, of_rest = step(slice(0, 4), slice(0, 0))
    assert_close(got, wanted, atol=1e-9)
    if of_rest is not None:
        torch.testing.assert_close(loss, of_rest)


# Rules whose loss has a part that reads no label, in the last block too.
LEARN_WITHOUT_LABELS = ("greedy",)


@pytest.mark.parametrize("name", NAMES)
def test_no_label_counts(name: str) -> None:
    """The loss of labels is 0, and so is its gradient; what reads no label learns on."""
    got, losses = stepped(name, lambda y: torch.full_like(y, -100))
    assert all(g.isfinite().all() for g in got.values())
    last = len(made(name)[0].blocks) - 1
    if name in LEARN_WITHOUT_LABELS:
        return
    if name in LINEAR:
        assert all(not g.any() for g in got.values())
        assert all(loss == 0 for loss in losses)
    else:
        of_last = {k: g for k, g in got.items() if k.startswith(f"blocks.{last}.")}
        assert all(g.abs().max() < 1e-12 for g in of_last.values()), (
            "no label counts, but the last block has a gradient; where the rule says so, list it "
            "in LEARN_WITHOUT_LABELS"
        )


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_class_is_refused(name: str) -> None:
    case, rule = made(name)
    many = one_hot(case.y).double()
    many[0] = 1
    for y, remedy in (
        (many, "criterion=F.binary_cross_entropy_with_logits"),
        (many.long(), "criterion=F.binary_cross_entropy_with_logits"),
        (torch.randn(6, CLASSES), "criterion=F.mse_loss"),
        (torch.randn(6), "criterion=F.mse_loss"),
        (torch.randn(6, 1), "criterion=F.mse_loss"),
        (case.y[:, None], "criterion="),
        (case.y[:, None].expand(6, CLASSES + 1), "criterion="),
        (case.y + CLASSES, "criterion=functools.partial(F.cross_entropy, ignore_index=...)"),
        (torch.full_like(case.y, -1), "give 0 to 2, and -100 for a label to leave out"),
    ):
        error = refused(lambda y=y: rule.backward(case.x, y))
        assert error is not None, y
        assert remedy in error
        assert error.startswith(f"{type(rule).__name__}: got ")
        assert not grads(rule)


def test_values_are_read_once_for_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    case, rule = made("dgl")
    looks = []

    def watched(y: Tensor, *args: object) -> Tensor:
        looks.append(args[-1])
        return y

    monkeypatch.setattr("layerwise.rules.base.checks.prepared", watched)
    classes = Batch(case.x, case.y)
    soft = Batch(case.x, F.one_hot(case.y).float())
    for batch in (classes, classes, soft, classes, soft):
        rule.check(batch)
    assert looks == [True, False, True, False, False]


# One number for each sample, with a criterion of the user's.


def bce(z: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(z.flatten(), y.flatten().to(z.dtype))


def one_logit(single: bool) -> Case:
    end: list[nn.Module] = [nn.Flatten(0)] if single else []
    parts = [
        nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh()),
        nn.Sequential(nn.Linear(5, 5), nn.Tanh()),
        nn.Sequential(nn.Linear(5, 1), *end),
    ]
    case = networks._case(parts, (1, 2, 3), False, torch.float64)
    case.y = (case.y > 0).double() if single else (case.y > 0).double()[:, None]
    return case


# The ways of making each rule, with a criterion.
SMALL = heads.MLP(width=7)
WITH_CRITERION: dict[str, Callable[..., Rule]] = {
    name: functools.partial(networks.made, getattr(rules, name))
    for name in rules.__all__
    if name not in OWN_NETWORKS
}


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("name", WITH_CRITERION)
def test_one_logit(name: str, single: bool) -> None:
    """With one block any rule is backpropagation of the criterion; with three it learns, or refuses
    in a line. The default criterion is refused."""
    case = one_logit(single)
    error = refused(lambda: WITH_CRITERION[name](case.blocks, criterion=bce))
    if name == "ForwardForward" or (single and name == "SharedReadout"):
        assert error is not None
        return
    assert error is None
    rule = WITH_CRITERION[name](case.blocks, criterion=bce)
    report = rule.backward(case.x, case.y)
    assert report.loss is None or report.loss.isfinite()
    assert all(g.isfinite().all() for g in grads(rule).values())
    assert any(g.any() for g in grads(rule).values())
    default = WITH_CRITERION[name](case.blocks, criterion=objectives.cross_entropy)
    error = refused(lambda: default.backward(case.x, case.y))
    assert error is not None
    assert "criterion=F.binary_cross_entropy_with_logits" in error


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize(
    "name", [name for name in WITH_CRITERION if name not in NOT_BACKPROPAGATION]
)
def test_one_block_is_backpropagation_of_the_criterion(name: str, single: bool) -> None:
    case = one_logit(single)
    if name == "SharedReadout" and single:
        pytest.skip("no nn.Linear gives (B,)")
    blocks = Blocks([case.model], example=case.x)
    if name == "ForwardForward":
        with pytest.raises(InputError, match="needs one label per sample, of two or more"):
            WITH_CRITERION[name](blocks, criterion=bce)
        return
    WITH_CRITERION[name](blocks, criterion=bce).backward(case.x, case.y)
    got = {k: p.grad for k, p in case.model.named_parameters()}
    plain = copy.deepcopy(case.model)
    plain.zero_grad()
    bce(plain(case.x), case.y).backward()
    assert_close(got, grads(plain), atol=1e-12)


def test_direct_feedback_of_one_logit_by_hand() -> None:
    """e = sigmoid(z) - y, by 1/B; the first block's gradient is (e B) h' x."""
    case = one_logit(single=True)
    rule = rules.DirectFeedbackAlignment(case.blocks, criterion=bce)
    rule.backward(case.x, case.y)
    linear = case.blocks[0][1]
    x = case.x.flatten(1)
    h = linear(x).tanh()
    e = (case.model(case.x).sigmoid() - case.y)[:, None] / 6
    asked = e @ rule.feedback.get_buffer("0") * (1 - h.square())
    torch.testing.assert_close(linear.weight.grad, (asked.T @ x).detach())


# Labels of tokens and of pixels.


def tokens(dtype: torch.dtype = torch.float64) -> Case:
    """Seven tokens of six features; three classes."""
    parts = [nn.Sequential(nn.Linear(6, 5), nn.Tanh()) for _ in range(1)]
    parts += [nn.Sequential(nn.Linear(5, 5), nn.Tanh()), nn.Linear(5, CLASSES)]
    case = networks._case(parts, (7, 6), False, dtype)
    case.y = torch.randint(0, CLASSES, (6, 7))
    return case


def maps(dtype: torch.dtype = torch.float64, channels: int = 2) -> Case:
    """Maps of W = C = 3, so that the last axis could be taken for that of the classes."""
    parts = [
        nn.Sequential(nn.Conv2d(channels, 4, 3, stride=2, padding=1), nn.Tanh()),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh()),
        nn.Sequential(nn.Upsample((4, 3)), nn.Conv2d(4, CLASSES, 3, padding=1)),
    ]
    case = networks._case(parts, (channels, 4, 3), True, dtype)
    case.y = torch.randint(0, CLASSES, (6, 4, 3))
    return case


def convolved(dtype: torch.dtype = torch.float64, length: int = 7) -> Case:
    """Scores (C, T) of one-dimensional convolutions."""
    parts = [
        nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.Tanh()),
        nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.Tanh()),
        nn.Conv1d(4, CLASSES, 3, padding=1),
    ]
    case = networks._case(parts, (2, length), False, dtype)
    case.y = torch.randint(0, CLASSES, (6, length))
    return case


def reference(scores: Tensor, y: Tensor, tokens_last: bool) -> Tensor:
    """Cross-entropy with the classes at axis 1, written out."""
    log_p = (scores if not tokens_last else scores.transpose(1, 2)).log_softmax(1)
    picked = log_p.gather(1, y.clamp(min=0).unsqueeze(1)).squeeze(1)
    return -picked[y >= 0].mean()


KINDS = {"tokens": tokens, "maps": maps, "convolved": convolved}
# Of scores for every token or pixel.
REFUSES = {
    "tokens": {"ForwardForward", "PEPITA"},
    "maps": {
        *("AugLocal", "DirectFeedbackAlignment", "DirectRandomTargetProjection"),
        *("ForwardForward", "PEPITA", "SharedReadout"),
    },
}
REFUSES["convolved"] = REFUSES["maps"] | {"MAN"}
CASES = [(kind, rule, name) for kind in KINDS for rule, ways in RULES.items() for name in ways]


@pytest.mark.parametrize(("kind", "rule_name", "name"), CASES)
def test_tokens_and_pixels(kind: str, rule_name: str, name: str) -> None:
    """Some are ignored. The network's loss is the reference's; a rule that cannot refuses."""
    case = KINDS[kind]()
    case.y[0, :2] = -100
    made: list[Rule] = []

    def step() -> None:
        made.append(ALL_RULES[name](case.blocks))
        made[-1].backward(case.x, case.y)

    error = refused(step)
    if rule_name in REFUSES[kind] or (name == "cdni" and kind != "tokens"):
        assert error is not None
        return
    assert error is None, error
    (rule,) = made
    assert all(g.isfinite().all() for g in grads(rule).values())
    assert any(g.any() for g in grads(rule).values())
    plain = copy.deepcopy(case.model)
    scores = plain(case.x)
    loss = reference(scores, case.y, kind == "tokens")
    if type(rule).forward is Rule.forward:
        report = rule.backward(case.x, case.y)
        if report.loss is not None:
            torch.testing.assert_close(report.loss, loss.detach())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule_name", [name for name in RULES if name not in NOT_BACKPROPAGATION])
def test_one_block_is_plain_autograd(kind: str, rule_name: str) -> None:
    case = KINDS[kind]()
    case.y[0, :2] = -100
    blocks = Blocks([case.model], example=case.x)
    name = next(iter(RULES[rule_name]))
    error = refused(lambda: ALL_RULES[name](blocks).backward(case.x, case.y))
    if error is not None:
        assert rule_name in REFUSES[kind], error
        return
    got = {k: p.grad for k, p in case.model.named_parameters()}
    plain = copy.deepcopy(case.model)
    plain.zero_grad()
    reference(plain(case.x), case.y, kind == "tokens").backward()
    assert_close(got, grads(plain), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_local_losses_are_the_references(kind: str) -> None:
    """DGL: each block's loss, and its gradient, by plain autograd of block, head and reference."""
    case = KINDS[kind]()
    case.y[0, :2] = -100
    rule = rules.DGL(case.blocks, head=SMALL)
    before = copy.deepcopy(rule)
    report = rule.backward(case.x, case.y)
    h = case.x
    for k, block in enumerate(before.blocks):
        out = block(h.detach())
        scores = before.objectives[k].head(out)
        assert scores.shape == report.logits.shape
        loss = reference(scores, case.y, kind == "tokens")
        loss.backward()
        torch.testing.assert_close(report.local_losses[k], loss.detach())
        h = out
    assert_close(grads(rule), grads(before), atol=1e-12)


def test_which_axis_cannot_be_told() -> None:
    """As many tokens as classes: the convention for tokens; refused after a convolution."""
    case = convolved(length=CLASSES)
    rule = rules.DGL(case.blocks)
    error = refused(lambda: rule.backward(case.x, case.y))
    assert error is not None
    assert "give criterion=F.cross_entropy, which reads (B, C, T)" in error
    rule = rules.DGL(case.blocks, criterion=F.cross_entropy)
    report = rule.backward(case.x, case.y)
    wanted = reference(case.model(case.x), case.y, False)
    torch.testing.assert_close(report.loss, wanted.detach())

    soft = F.one_hot(convolved().y, CLASSES).double().transpose(1, 2)
    error = refused(lambda: rules.DGL(convolved().blocks).backward(convolved().x, soft))
    assert error is not None
    assert "criterion=F.cross_entropy" in error

    parts = [nn.Linear(6, 5), nn.Linear(5, 7)]
    x, y = torch.randn(4, 7, 6), torch.randint(0, 7, (4, 7))
    blocks = Blocks(parts, example=x)
    report = rules.Backprop(blocks).backward(x, y)
    torch.testing.assert_close(report.loss, reference(blocks(x), y, True).detach())


WRONG = {
    "an array": (lambda y: y.numpy(), "got labels of type ndarray; give a tensor"),
    "a list": (lambda y: y.tolist(), "got labels of type list; give a tensor"),
    "nothing": (lambda y: None, "got labels of type NoneType; give a tensor"),
    "one number": (lambda y: y[0], "got a single label"),
    "none": (lambda y: y[:0], "labels; give one label for each input"),
    "real numbers": (lambda y: y.double(), "real numbers are labels only if|such as y.argmax"),
    "beyond": (lambda y: y + CLASSES, "got the label"),
    "negative": (lambda y: y - CLASSES, "got the label -"),
    "large": (lambda y: y + 2**40, "got the label"),
}


@pytest.mark.parametrize("name", NAMES)
def test_labels_that_are_none_are_refused_in_one_line(name: str) -> None:
    """In the first step, and in later ones, too: values are looked at in every step where nothing
    is to be waited for."""
    case, rule = made(name)
    for later in (False, True):
        if later:
            rule.backward(case.x, case.y)
            rule.zero_grad()
        for kind, (change, says) in WRONG.items():
            error = refused(lambda change=change: rule.backward(case.x, change(case.y)))
            assert error is not None, kind
            assert re.search(says, error), kind
            assert not grads(rule)


@pytest.mark.parametrize("name", NAMES)
def test_inference_mode_says_what_no_grad_says(name: str) -> None:
    said = []
    for context in (torch.no_grad, torch.inference_mode):
        case, rule = made(name)
        with context():
            said.append(refused(lambda case=case, rule=rule: rule.backward(case.x, case.y)))
    assert said[0] == said[1]
    assert said[0] is None or "gradients are off" in said[0]


def test_tensors_made_in_inference_mode() -> None:
    case, rule = made("backprop")
    with torch.inference_mode():
        x, y = case.x.clone(), case.y.clone()
    for step in (lambda: rule.backward(x, case.y), lambda: rule.backward(case.x, y)):
        said = refused(step)
        assert said is not None
        assert "made in torch.inference_mode(), which no gradient can pass; give its clone" in said


def test_batchnorm_of_one_sample_names_its_block() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    x, y = torch.randn(1, 4), torch.tensor([2])
    for rule, place in [
        (rules.Backprop(Blocks([*model], example=x.repeat(2, 1))), "BatchNorm1d in block '1'"),
        (
            rules.DGL(Blocks([*model[::2]], example=x.repeat(2, 1)), head=_normalized),
            "BatchNorm1d in the auxiliary network of block '0'",
        ),
    ]:
        said = refused(lambda rule=rule: rule.backward(x, y))
        assert said is not None
        assert place in said
        assert "give batches of at least 2 samples" in said


@pytest.mark.parametrize("name", ["backprop", "dgl", "direct_feedback_alignment", "spsa"])
def test_inputs_unlike_the_example_are_named(name: str) -> None:
    """Of another type, size or number of channels; those that the network can take are taken."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    made_by = {
        "backprop": rules.Backprop,
        "dgl": rules.DGL,
        "direct_feedback_alignment": rules.DirectFeedbackAlignment,
        "spsa": rules.SPSA,
    }[name]
    x, y = torch.randn(2, 3, 8, 8), torch.tensor([0, 2])
    rule = made_by(cut(network, 2, example=x))
    for given, what in [
        (x.double(), "float64 of shape (2, 3, 8, 8)"),
        (x.byte(), "uint8 of shape (2, 3, 8, 8)"),
        (torch.randn(2, 3, 9, 9), "float32 of shape (2, 3, 9, 9)"),
        (torch.randn(2, 1, 8, 8), "float32 of shape (2, 1, 8, 8)"),
    ]:
        said = refused(lambda given=given: rule.backward(given, y))
        assert said is not None
        assert f"got {what}, but the network was cut with float32 of shape (2, 3, 8, 8)" in said
        assert "give inputs like the example" in said
        assert "\n" not in said
    rule.backward(x, y)  # nothing is left of the failed steps


def _normalized(in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(*in_shape), nn.Linear(*in_shape, *out_shape))


def test_maps_with_the_classes_last() -> None:
    """They learn what they learn with the classes first; labels that would be read on the other
    axis are refused."""
    torch.manual_seed(0)
    last = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    first = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Tanh(), nn.Conv2d(4, 3, 1)).double()
    first.load_state_dict(
        {k: v.view_as(first.state_dict()[k]) for k, v in last.state_dict().items()}
    )
    x, y = torch.randn(2, 5, 4, 2).double(), torch.randint(3, (2, 5, 4))
    as_last = rules.Backprop(cut(last, "all", example=x))
    as_first = rules.Backprop(cut(first, "all", example=x.movedim(-1, 1)))
    as_last.backward(x, y)
    as_first.backward(x.movedim(-1, 1), y)
    for a, b in zip(last.parameters(), first.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad.view_as(a))
    soft = F.one_hot(y, 3)
    for labels in (soft, soft.double()):
        with pytest.raises(InputError, match=r"probabilities are read as \(B, C, H, W\)") as e:
            as_last.backward(x, labels)
        assert "\n" not in str(e.value)
        as_first.backward(x.movedim(-1, 1), labels.movedim(-1, 1))
    with pytest.raises(InputError, match="with 3 of each, scores are read as"):
        as_last.backward(x[:, :3, :3], y[:, :3, :3])
