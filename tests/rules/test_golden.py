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
    (head,) = [m for m in rule.objectives["0"].modules() if isinstance(m, nn.Linear)]
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
