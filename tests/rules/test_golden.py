"""One step derived by hand.

The network, two blocks without bias, and two samples:

    x = (1, -1) with label 1, and (0, 0) with label 0
    W1 = [[2, 1], [1, 0]]         h1 = W1 x = (1, 1), (0, 0)
    W2 = [[0, ln 2], [3, -3]]     h2 = W2 h1 = (ln 2, 0), (0, 0)

Softmax cross-entropy of scores z has dL/dz = softmax(z) - onehot(y) =: d, per sample:

    h2 = (ln 2, 0): p = (2/3, 1/3), y = 1: loss = ln 3, d = (2/3, -2/3)
    h2 = (0, 0):    p = (1/2, 1/2), y = 0: loss = ln 2, d = (-1/2, 1/2)

The mean over two samples halves every d:  loss2 = (ln 3 + ln 2) / 2, and h1 = 0 in the second, so

    dW2 = (1/2) (2/3, -2/3)^T (1, 1) = [[1/3, 1/3], [-1/3, -1/3]]

Block 1's head, linear, A = [[ln 3, 0], [1, -1]], bias 0:

    z = A h1 = (ln 3, 0): p = (3/4, 1/4), y = 1: loss = ln 4, d = (3/4, -3/4)
    z = (0, 0):           p = (1/2, 1/2), y = 0: loss = ln 2, d = (-1/2, 1/2)
    loss1 = (ln 4 + ln 2) / 2 = 1.5 ln 2
    dA = (1/2) (3/4, -3/4)^T (1, 1)              = [[3/8, 3/8], [-3/8, -3/8]]
    da = (1/2) ((3/4, -3/4) + (-1/2, 1/2))       = (1/8, -1/8)
    dh1 = (1/2) A^T (3/4, -3/4) = (3/8) (ln 3 - 1, 1)        in the first sample
    dW1 = dh1^T (1, -1): x = 0 in the second sample
"""

import math

import torch
from networks import MeanSquare
from torch import Tensor, nn

from layerwise import Blocks, Rule, heads, objectives, rules

LN2, LN3 = math.log(2), math.log(3)
X = torch.tensor([[1.0, -1.0], [0.0, 0.0]], dtype=torch.float64)
Y = torch.tensor([1, 0])
W1 = [[2.0, 1.0], [1.0, 0.0]]
W2 = [[0.0, LN2], [3.0, -3.0]]
A = [[LN3, 0.0], [1.0, -1.0]]
DW2 = [[1 / 3, 1 / 3], [-1 / 3, -1 / 3]]


def _blocks() -> Blocks:
    blocks = [nn.Linear(2, 2, bias=False, dtype=torch.float64) for _ in range(2)]
    for block, weight in zip(blocks, (W1, W2), strict=True):
        block.weight.data = torch.tensor(weight, dtype=torch.float64)
    return Blocks(blocks, example=X)


def _head(rule: Rule) -> nn.Linear:
    """Block 1's head, given the weights A."""
    (head,) = [m for m in rule.objectives[0].modules() if isinstance(m, nn.Linear)]
    head.weight.data = torch.tensor(A, dtype=torch.float64)
    head.bias.data.zero_()
    return head


def _is(got: Tensor | None, wanted: list | float) -> None:
    assert got is not None
    torch.testing.assert_close(
        got, torch.tensor(wanted, dtype=torch.float64), atol=1e-14, rtol=1e-14
    )


def test_backprop() -> None:
    """dh1 = (1/2) W2^T (2/3, -2/3) = (1/3) (0 - 3, ln 2 + 3) in the first sample."""
    for checkpoint in (False, True):
        rule = rules.Backprop(_blocks(), checkpoint=checkpoint)
        report = rule.backward(X, Y)
        first, second = rule.blocks
        _is(first.weight.grad, [[-1.0, 1.0], [LN2 / 3 + 1, -LN2 / 3 - 1]])
        _is(second.weight.grad, DW2)
        _is(report.loss, (LN3 + LN2) / 2)
        _is(report.logits, [[LN2, 0.0], [0.0, 0.0]])
        assert report.local_losses[0] is None
        _is(report.local_losses[1], (LN3 + LN2) / 2)


def test_dgl() -> None:
    rule = rules.DGL(_blocks(), num_classes=2, head=heads.Linear(pool=None))
    head = _head(rule)
    report = rule.backward(X, Y)
    first, second = rule.blocks
    g = 3 / 8 * (LN3 - 1)
    _is(first.weight.grad, [[g, -g], [3 / 8, -3 / 8]])
    _is(head.weight.grad, [[3 / 8, 3 / 8], [-3 / 8, -3 / 8]])
    _is(head.bias.grad, [1 / 8, -1 / 8])
    _is(second.weight.grad, DW2)
    _is(report.local_losses[0], 1.5 * LN2)
    _is(report.local_losses[1], (LN3 + LN2) / 2)
    _is(report.loss, (LN3 + LN2) / 2)
    _is(report.local_logits[0], [[LN3, 0.0], [0.0, 0.0]])
    _is(report.local_logits[1], [[LN2, 0.0], [0.0, 0.0]])
    _is(report.logits, [[LN2, 0.0], [0.0, 0.0]])


def test_greedy_weighted_sum() -> None:
    """0.25 of the loss above and 0.75 of mean(h1^2) = (1 + 1 + 0 + 0) / 4 = 1/2.

    d mean(h1^2) / dh1 = 2 h1 / 4 = (1/2, 1/2) in the first sample, so

        dh1 = 0.25 (3/8) (ln 3 - 1, 1) + 0.75 (1/2, 1/2)
            = ((3/32) (ln 3 - 1) + 3/8, 3/32 + 3/8)

    and the head's gradient is a quarter of what it is alone.
    """
    objective = 0.25 * objectives.Classify(heads.Linear(pool=None)) + 0.75 * MeanSquare()
    rule = rules.Greedy(_blocks(), objective)
    head = _head(rule)
    report = rule.backward(X, Y)
    first, second = rule.blocks
    g = 3 / 32 * (LN3 - 1) + 3 / 8
    _is(first.weight.grad, [[g, -g], [15 / 32, -15 / 32]])
    _is(head.weight.grad, [[3 / 32, 3 / 32], [-3 / 32, -3 / 32]])
    _is(head.bias.grad, [1 / 32, -1 / 32])
    _is(second.weight.grad, DW2)
    _is(report.local_losses[0], 0.25 * 1.5 * LN2 + 0.75 * 0.5)
    _is(report.loss, (LN3 + LN2) / 2)


def test_scale_scales_the_gradient_and_not_the_report() -> None:
    rule = rules.DGL(_blocks(), head=heads.Linear(pool=None))
    head = _head(rule)
    report = rule.backward(X, Y, scale=lambda loss: 8 * loss)
    _is(head.bias.grad, [1.0, -1.0])
    _is(rule.blocks[1].weight.grad, [[8 / 3, 8 / 3], [-8 / 3, -8 / 3]])
    _is(report.local_losses[0], 1.5 * LN2)
    _is(report.loss, (LN3 + LN2) / 2)


def test_label_smoothing_and_tokens_of_cross_entropy() -> None:
    """z = (ln 3, 0), p = (3/4, 1/4). With smoothing 0.2, the target is (0.1, 0.9) for y = 1:
    loss = -0.1 ln(3/4) - 0.9 ln(1/4) = 2 ln 2 - 0.1 ln 3. Per token: the mean over all tokens."""
    z = torch.tensor([[LN3, 0.0]], dtype=torch.float64)
    y = torch.tensor([1])
    _is(objectives.cross_entropy(z, y), 2 * LN2)
    _is(objectives.cross_entropy(z, y, label_smoothing=0.2), 2 * LN2 - 0.1 * LN3)
    tokens = torch.stack([z, torch.zeros_like(z)], dim=1)  # (1, 2, 2): losses ln 4 and ln 2
    _is(objectives.cross_entropy(tokens, torch.tensor([[1, 0]])), 1.5 * LN2)


class _LinearSynthesizer(nn.Module):
    """M h + C[y], M = [[1, 2], [0, 1]], C[0] = (1, 0), C[1] = (0, 2)."""

    def __init__(self, classes: int | None):
        super().__init__()
        self.m = nn.Parameter(torch.tensor([[1.0, 2.0], [0.0, 1.0]], dtype=torch.float64))
        self.c = nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64))
        self.classes = classes

    def forward(self, h: Tensor, y: Tensor | None) -> Tensor:
        assert (y is None) == (self.classes is None)
        return h @ self.m.T + (0 if y is None else self.c[y])


def _dni(**options: object) -> rules.DNI:
    return rules.DNI(_blocks(), lambda shape, classes: _LinearSynthesizer(classes), **options)


def test_dni() -> None:
    """The synthetic gradient of a sample's loss is M h1 = (3, 1), (0, 0), so

        dW1 = (1/2) (3, 1)^T (1, -1) = [[3/2, -3/2], [1/2, -1/2]]

    The target is W2^T d = (3 (-2/3), ln 2 (2/3) + 3 (2/3)) = (-2, (2/3) ln 2 + 2) in the first
    sample, (3/2, -(1/2) ln 2 - 3/2) in the second. The synthesizer's errors are

        e = (5, -1 - (2/3) ln 2), (-3/2, 3/2 + (1/2) ln 2)

    its loss their mean square over 4 elements, and dM = (2/4) e^T h1, where h1 = (1, 1), (0, 0).
    The last block learns as in backpropagation.
    """
    rule = _dni()
    report = rule.backward(X, Y)
    first, second = rule.blocks
    (synthesizer,) = rule.synthesizers
    _is(first.weight.grad, [[1.5, -1.5], [0.5, -0.5]])
    _is(second.weight.grad, DW2)
    e = [5, -1 - 2 / 3 * LN2, -3 / 2, 3 / 2 + LN2 / 2]
    _is(report.local_losses[0], sum(v * v for v in e) / 4)
    _is(synthesizer.m.grad, [[2.5, 2.5], [-0.5 - LN2 / 3, -0.5 - LN2 / 3]])
    assert synthesizer.c.grad is None
    _is(report.loss, (LN3 + LN2) / 2)


def test_cdni() -> None:
    """With the labels 1 and 0 the synthetic gradients are (3, 1) + (0, 2) and (0, 0) + (1, 0), so

    dW1 = (1/2) (3, 3)^T (1, -1);    e = (5, 1 - (2/3) ln 2), (-1/2, 3/2 + (1/2) ln 2)
    dC[1] = (2/4) e of the first sample, dC[0] of the second
    """
    rule = _dni(context=True)
    rule.backward(X, Y)
    (synthesizer,) = rule.synthesizers
    _is(rule.blocks[0].weight.grad, [[1.5, -1.5], [1.5, -1.5]])
    _is(rule.blocks[1].weight.grad, DW2)
    _is(synthesizer.m.grad, [[2.5, 2.5], [0.5 - LN2 / 3, 0.5 - LN2 / 3]])
    _is(synthesizer.c.grad, [[-0.25, 0.75 + LN2 / 4], [2.5, 0.5 - LN2 / 3]])


def test_direct_global() -> None:
    """With w = 1/3. At the scores, the first head's gradient is (3/4, -3/4), (-1/2, 1/2) per sample
    and the last's (2/3, -2/3), (-1/2, 1/2), so mixed

        d = (2/3) (3/4, -3/4) + (1/3) (2/3, -2/3) = (13/18, -13/18),   and (-1/2, 1/2)
        dA = (1/2) (13/18, -13/18)^T (1, 1),   da = (1/2) (13/18 - 1/2) (1, -1) = (1/9, -1/9)
        dh1 = (1/2) A^T (13/18, -13/18) = (13/36) (ln 3 - 1, 1)

    Losses are those of DGL, and the last block learns as in backpropagation.
    """
    rule = rules.DirectGlobal(_blocks(), last_gradient_weight=1 / 3, head=heads.Linear())
    head = _head(rule)
    report = rule.backward(X, Y)
    d = 13 / 36
    _is(head.weight.grad, [[d, d], [-d, -d]])
    _is(head.bias.grad, [1 / 9, -1 / 9])
    row = (d * (LN3 - 1), d)
    _is(rule.blocks[0].weight.grad, [[row[0], -row[0]], [row[1], -row[1]]])
    _is(rule.blocks[1].weight.grad, DW2)
    _is(report.local_losses[0], 1.5 * LN2)
    _is(report.local_logits[0], [[LN3, 0.0], [0.0, 0.0]])


def test_last_block() -> None:
    rule = rules.LastBlock(_blocks())
    report = rule.backward(X, Y)
    assert rule.blocks[0].weight.grad is None
    _is(rule.blocks[1].weight.grad, DW2)
    _is(report.loss, (LN3 + LN2) / 2)
    assert report.local_losses[0] is None


def test_deep_supervision() -> None:
    """With weight 1/2: dh1 is backpropagation's and half of the head's, in the first sample

        (1/3) (-3, ln 2 + 3) + (1/2) (3/8) (ln 3 - 1, 1)

    The head's gradient is half of what it is alone, and the last block's that of backpropagation.
    """
    rule = rules.DeepSupervision(_blocks(), weight=0.5, head=heads.Linear(pool=None))
    head = _head(rule)
    report = rule.backward(X, Y)
    a, b = -1 + 3 / 16 * (LN3 - 1), LN2 / 3 + 1 + 3 / 16
    _is(rule.blocks[0].weight.grad, [[a, -a], [b, -b]])
    _is(head.weight.grad, [[3 / 16, 3 / 16], [-3 / 16, -3 / 16]])
    _is(head.bias.grad, [1 / 16, -1 / 16])
    _is(rule.blocks[1].weight.grad, DW2)
    _is(report.local_losses[0], 1.5 * LN2)
    _is(report.loss, (LN3 + LN2) / 2)


def test_sgr() -> None:
    """With weight 1/4. Gradients of a sample's own loss with respect to h1, for the two samples:

        the head asks   g = A^T d  = (3/4) (ln 3 - 1, 1),         ((1 - ln 3) / 2, -1/2)
        block 2 asks    W2^T d     = (-2, (2/3) ln 2 + 2),        (3/2, -(1/2) ln 2 - 3/2)

    Their differences e1, e2; the distance is R = (|e1|^2 + |e2|^2) / 2. With d = softmax(W2 h) - y
    and J = diag(p) - p p^T its slope, p = (2/3, 1/3) in the first sample,

        dR/dW2 = sum over samples of d e^T + J W2 e h^T
        J = (2/9) [[1, -1], [-1, 1]],   W2 e1 = (ln 2 e1_2, 3 (e1_1 - e1_2)),   h = (1, 1), (0, 0)

    so with u = ln 2 e1_2 - 3 (e1_1 - e1_2) its first row is (2/3) e1 - (1/2) e2 + (2/9) (u, u), and
    the second row its opposite. The first block and its head learn as in DGL.
    """
    rule = rules.SGR(_blocks(), weight=0.25, head=heads.Linear(pool=None))
    head = _head(rule)
    report = rule.backward(X, Y)
    g = 3 / 8 * (LN3 - 1)
    _is(rule.blocks[0].weight.grad, [[g, -g], [3 / 8, -3 / 8]])
    _is(head.weight.grad, [[3 / 8, 3 / 8], [-3 / 8, -3 / 8]])
    e1 = (-2 - 3 / 4 * (LN3 - 1), 2 / 3 * LN2 + 2 - 3 / 4)
    e2 = (1 + LN3 / 2, -LN2 / 2 - 1)
    u = LN2 * e1[1] - 3 * (e1[0] - e1[1])
    row = [1 / 3 + (2 / 3 * e1[k] - e2[k] / 2 + 2 / 9 * u) / 4 for k in (0, 1)]
    _is(rule.blocks[1].weight.grad, [row, [-row[0], -row[1]]])
    _is(report.local_losses[0], 1.5 * LN2)
    _is(report.loss, (LN3 + LN2) / 2)


def test_feedback_alignment() -> None:
    """With B = [[1, -1], [2, 0]] for W2: dh1 = (1/3) B^T (1, -1) = (1/3) (-1, -1) in the first
    sample, where x = (1, -1). Block 2 learns as in backpropagation."""
    rule = rules.FeedbackAlignment(_blocks())
    rule.matrices()[rule.blocks[1].weight].copy_(torch.tensor([[1.0, -1.0], [2.0, 0.0]]))
    report = rule.backward(X, Y)
    _is(rule.blocks[0].weight.grad, [[-1 / 3, 1 / 3], [-1 / 3, 1 / 3]])
    _is(rule.blocks[1].weight.grad, DW2)
    _is(report.loss, (LN3 + LN2) / 2)
    assert report.local_losses[0] is None


def test_sign_symmetry() -> None:
    """sign(W2) = [[0, 1], [1, -1]], s = sqrt(2 / (2 + 2)): dh1 = (s/3) (0 - 1, 1 + 1)."""
    rule = rules.SignSymmetry(_blocks())
    rule.backward(X, Y)
    s = math.sqrt(0.5)
    _is(rule.blocks[0].weight.grad, [[-s / 3, s / 3], [2 * s / 3, -2 * s / 3]])
    _is(rule.blocks[1].weight.grad, DW2)


def test_direct_feedback_alignment() -> None:
    """With B_1 = [[1, 2], [4, -1]]: dh1 = (1/3) (1, -1) B_1 = (1/3) (1 - 4, 2 + 1)."""
    rule = rules.DirectFeedbackAlignment(_blocks())
    rule.feedback.get_buffer("0").copy_(torch.tensor([[1.0, 2.0], [4.0, -1.0]]))
    report = rule.backward(X, Y)
    _is(rule.blocks[0].weight.grad, [[-1.0, 1.0], [1.0, -1.0]])
    _is(rule.blocks[1].weight.grad, DW2)
    _is(report.loss, (LN3 + LN2) / 2)


def test_direct_random_target_projection() -> None:
    """With the same B_1, and label 1 of the first of two samples: dh1 = (1/2) (4, -1)."""
    rule = rules.DirectRandomTargetProjection(_blocks())
    rule.feedback.get_buffer("0").copy_(torch.tensor([[1.0, 2.0], [4.0, -1.0]]))
    report = rule.backward(X, Y)
    _is(rule.blocks[0].weight.grad, [[2.0, -2.0], [-0.5, 0.5]])
    _is(rule.blocks[1].weight.grad, DW2)
    _is(report.loss, (LN3 + LN2) / 2)


def test_local_critic() -> None:
    """The critic's losses are ln 4 and ln 2, the network's ln 3 and ln 2. The first is too large,
    the second right (slope 0), so the critic has the first sample's gradient alone:

        dA = (1/2) (3/4, -3/4)^T (1, 1),   da = (1/2) (3/4, -3/4)

    Block 1 learns from the critic as from a head, the last block as in backpropagation.
    """
    rule = rules.LocalCritic(_blocks(), head=heads.Linear(pool=None))
    head = _head(rule)
    report = rule.backward(X, Y)
    g = 3 / 8 * (LN3 - 1)
    _is(rule.blocks[0].weight.grad, [[g, -g], [3 / 8, -3 / 8]])
    _is(head.weight.grad, [[3 / 8, 3 / 8], [-3 / 8, -3 / 8]])
    _is(head.bias.grad, [3 / 8, -3 / 8])
    _is(rule.blocks[1].weight.grad, DW2)
    _is(report.local_losses[0], 1.5 * LN2)
    _is(report.loss, (LN3 + LN2) / 2)


def _man(scaled: bool) -> tuple[rules.MAN, nn.Module]:
    """Three linear blocks of weights 2, 3/8 and a classifier, and x = 1: h1 = 2."""
    parts = [nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False), nn.Linear(1, 2)]
    for part, weight in zip(parts, (2.0, 0.375), strict=False):
        part.weight.data.fill_(weight)
    blocks = Blocks([p.double() for p in parts], example=torch.ones(1, 1, dtype=torch.float64))
    rule = rules.MAN(blocks, heads.Linear(), momentum=0.9, scaled=scaled)
    made = rule.objectives[0].head
    made.bias[0].weight.data.fill_(0.125)
    made.head[0].weight.data = torch.tensor([[LN3], [0.0]], dtype=torch.float64)
    made.head[0].bias.data.zero_()
    return rule, made


def test_man() -> None:
    """The average is the next block's 3/8 and the bias 1/8, so y = (3/8 + 1/8) 2 = 1, the scores
    are (ln 3, 0), p = (3/4, 1/4), the label 1: loss = ln 4, dy = (3/4) ln 3,

        dW1 = dy (3/8 + 1/8) 1,    dbias = dy 2,    ds = dy (1/8 - 3/8) 2   at s = 1
    """
    x, y = torch.ones(1, 1, dtype=torch.float64), torch.tensor([1])
    for scaled in (False, True):
        rule, made = _man(scaled)
        report = rule.backward(x, y)
        dy = 0.75 * LN3
        _is(rule.blocks[0].weight.grad, [[0.5 * dy]])
        _is(made.bias[0].weight.grad, [[2 * dy]])
        _is(made.head[0].weight.grad, [[0.75], [-0.75]])
        if scaled:
            _is(made.scale.grad, -0.5 * dy)
        _is(report.local_losses[0], 2 * LN2)


def test_the_average_of_man() -> None:
    """Momentum 0.9. Steps take the next block's weight from 0.375 to 1.375 to 2.375. The average
    takes in 0.375 (itself), then 1.375: 0.9 0.375 + 0.1 1.375 = 0.475, then 2.375:
    0.9 0.475 + 0.1 2.375 = 0.665; more batches before the next step do not move it."""
    rule, made = _man(False)
    x, y = torch.ones(1, 1, dtype=torch.float64), torch.tensor([1])
    for wanted in (0.375, 0.375, 0.475, 0.665):
        for _ in range(3):  # accumulated
            rule.backward(x, y)
            _is(made.average[0].weight, [[wanted]])
        rule.blocks[1].weight.data += 1.0
