"""Direct feedback alignment and direct random target projection: limits, naive implementations,
what reaches whom."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import networks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, assert_close, assert_same, grads
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise import Blocks, Rule, rules

MAKERS = [rules.DirectFeedbackAlignment, rules.DirectRandomTargetProjection]


def linear_network(depth: int) -> tuple[Blocks, Tensor, Tensor]:
    widths = [4, 5, 6, 7, 3][-depth - 1 :]
    parts = [nn.Linear(a, b).double() for a, b in itertools.pairwise(widths)]
    x = torch.randn(6, widths[0]).double()
    return Blocks(parts, example=x), x, torch.randint(3, (6,))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_with_the_networks_own_matrix_it_is_backprop(depth: int) -> None:
    """On a linear network dz/dh_k is W_K ... W_{k+1}, whatever the input."""
    blocks, x, y = linear_network(depth)
    rule = rules.DirectFeedbackAlignment(blocks)
    matrix = torch.eye(3).double()
    for k in reversed(range(depth - 1)):
        matrix = matrix @ blocks[k + 1].weight.detach()
        rule.feedback.get_buffer(str(k)).copy_(matrix)
    rule.backward(x, y)
    got = grads(rule)
    rule.zero_grad()
    F.cross_entropy(blocks(x), y).backward()
    assert_close(got, grads(rule), atol=1e-15)


def test_through_a_normalisation_by_hand() -> None:
    """h = W x = (a, 0, -a), a = sqrt(3/2), has the mean 0 and the standard deviation 1, so it is
    N(h). With scores of 0 and the label 0, e = (-1/2, 1/2), and B's first row (-2, 0, 0) makes
    e B = g = (1, 0, 0). Then

        dL/dh = g - mean(g) - N(h) mean(g N(h)) = (1, 0, 0) - 1/3 - (a, 0, -a) a/3
              = (1/6, -1/3, 1/6)

    which has no part along h and none along (1, 1, 1). x = 2 makes dW twice that.
    """
    a = math.sqrt(1.5)
    first, last = nn.Linear(1, 3, bias=False).double(), nn.Linear(3, 2, bias=False).double()
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[a / 2], [0.0], [-a / 2]]))
        last.weight.zero_()
    x = torch.full((1, 1), 2.0).double()
    rule = rules.DirectFeedbackAlignment(Blocks([first, last], example=x), normalize=True)
    rule.feedback.get_buffer("0").copy_(torch.tensor([[-2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    rule.backward(x, torch.zeros(1, dtype=torch.long))
    wanted = torch.tensor([[1 / 3], [-2 / 3], [1 / 3]]).double()
    torch.testing.assert_close(first.weight.grad, wanted, atol=2e-5, rtol=0)  # LayerNorm's eps


@pytest.mark.parametrize("shape", [(6,), (3, 4, 2), (5, 6)])
def test_through_the_networks_own_normalisation_it_is_backprop(shape: tuple[int, ...]) -> None:
    """Of vectors, feature maps, and tokens with a label each: the last block normalises what it
    reads, and B is its weight."""
    tokens = len(shape) == 2
    over = shape[-1:] if tokens else shape
    units = math.prod(over)
    first = nn.Linear(shape[-1], shape[-1]).double()
    flat = nn.Identity() if tokens else nn.Flatten()
    classify = nn.Linear(units, 3).double()
    last = nn.Sequential(nn.LayerNorm(over, elementwise_affine=False), flat, classify)
    x = torch.randn(4, *shape).double()
    y = torch.randint(3, (4, shape[0]) if tokens else (4,))
    rule = rules.DirectFeedbackAlignment(Blocks([first, last], example=x), normalize=True)
    rule.feedback.get_buffer("0").copy_(classify.weight.detach())
    rule.backward(x, y)
    got = grads(rule)
    rule.zero_grad()
    F.cross_entropy(last(first(x)).flatten(0, -2), y.flatten()).backward()
    assert_close(got, grads(rule), atol=1e-14)


def _matrix(rule: Rule, k: int, units: int) -> Tensor:
    if "all" in dict(rule.feedback.named_buffers()):
        return rule.feedback.get_buffer("all")[:, :units] * 0.7 / math.sqrt(units)
    return rule.feedback.get_buffer(str(k))


def naive(rule: Rule, case: networks.Case, tokens: bool) -> dict[str, Tensor]:
    """Sample by sample, row by row of a matrix. The rule's `scale` is 0.7."""
    samples = len(case.x)
    outputs = [case.x]
    for block in case.blocks:
        outputs.append(block(outputs[-1].detach()))
    loss = F.cross_entropy(outputs[-1], case.y)
    (e,) = torch.autograd.grad(loss, outputs[-1], retain_graph=True)
    if isinstance(rule, rules.DirectRandomTargetProjection):
        e = F.one_hot(case.y, 3).double() / samples
    for k, h in enumerate(outputs[1:-1]):
        flat = h.flatten(0, 1) if tokens else h.flatten(1)
        matrix = _matrix(rule, k, flat.shape[1])
        asked = torch.zeros_like(h)
        for b in range(samples):
            for t in range(h.shape[1]) if tokens else [slice(None)]:
                asked[b, t] += sum(e[b, c] * matrix[c] for c in range(3)).view(asked[b, t].shape)
        (h * asked).sum().backward()
    loss.backward()
    found = grads(rule)
    rule.zero_grad()
    return found


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_against_a_naive_implementation(
    network: str, make: Callable[..., Rule], shared: bool
) -> None:
    case = NETWORKS[network](torch.float64)
    rule = make(case.blocks, scale=0.7, shared=shared)
    wanted = naive(rule, case, network == "transformer")
    rule.backward(case.x, case.y)
    assert_close(grads(rule), wanted, atol=1e-14)


@given(networks.chains(), st.sampled_from(MAKERS), st.booleans())
@settings(max_examples=25, deadline=None)
def test_random_chains(case: networks.Case, make: Callable[..., Rule], shared: bool) -> None:
    rule = make(case.blocks, scale=0.7, shared=shared)
    wanted = naive(rule, case, False)
    rule.backward(case.x, case.y)
    assert_close(grads(rule), wanted, atol=1e-12)


def test_a_label_for_every_token() -> None:
    """Each token's own error, or its own label, but for those that ask for nothing."""
    layer = nn.TransformerEncoderLayer(6, 2, 8, 0.0, batch_first=True).double()
    parts = [nn.Embedding(11, 6).double(), layer, nn.Linear(6, 11).double()]
    x, y = torch.randint(0, 11, (4, 7)), torch.randint(0, 11, (4, 7))
    blocks = Blocks(parts, example=x)
    for make in MAKERS:
        rule = make(blocks)
        rule.backward(x, y)
        got = grads(rule)
        rule.zero_grad()
        h = [parts[0](x)]
        for part in parts[1:]:
            h.append(part(h[-1].detach()))
        e = (h[2].softmax(-1) - F.one_hot(y, 11)) / 28
        if make is rules.DirectRandomTargetProjection:
            e = F.one_hot(y, 11).double() / 28
        for k in (0, 1):
            asked = torch.einsum(
                "btc,cd->btd", e.detach().double(), rule.feedback.get_buffer(str(k))
            )
            (h[k] * asked).sum().backward()
        F.cross_entropy(h[2].transpose(1, 2), y).backward()
        assert_close(got, grads(rule), atol=1e-14)
        rule.zero_grad()

    y = torch.full((4, 7), -100)
    y[0, 0] = 3
    rule.backward(x, y)
    first = rule.blocks[0].weight.grad
    assert [bool(row.any()) for row in first] == [bool(i == x[0, 0]) for i in range(11)]


def test_what_reaches_whom() -> None:
    """Later weights reach a block through the error alone; under target projection not at all."""
    for make, reached in zip(MAKERS, (True, False), strict=True):
        case = networks.cnn(torch.float64)
        rule = make(case.blocks)
        rule.backward(case.x, case.y)
        before = grads(rule.blocks[0])
        rule.zero_grad()
        with torch.no_grad():
            for p in rule.parameters_of(2):
                p.add_(torch.randn_like(p))
        rule.backward(case.x, case.y)
        same = [torch.equal(g, before[n]) for n, g in grads(rule.blocks[0]).items()]
        assert not any(same) if reached else all(same)


def test_graphs_wait_for_the_error() -> None:
    """One by one they are gone when their block is done."""
    case = networks.plain_cnn()
    rule = rules.DirectFeedbackAlignment(case.blocks)
    alive: set[int] = set()
    counts: list[int] = []

    class Held:
        def __init__(self, tensor: Tensor):
            self.tensor = tensor
            alive.add(id(self))

        def __del__(self) -> None:
            alive.discard(id(self))

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        rule.backward(case.x, case.y, on_block=lambda i: counts.append(len(alive)))
    assert counts[0] > counts[1] > counts[2] == 0


def test_a_block_that_changes_its_input() -> None:
    parts = [nn.Linear(6, 5), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 3))]
    x, y = torch.randn(4, 6), torch.randint(0, 3, (4,))
    for make in MAKERS:
        rule = make(Blocks(parts, example=x))
        rule.backward(x, y)
        got = grads(rule)
        rule.zero_grad()
        parts[1][0].inplace = False
        rule.backward(x, y)
        assert_same(got, grads(rule))
        rule.zero_grad()
        parts[1][0].inplace = True


def test_matrices() -> None:
    case = networks.cnn()
    sizes = [math.prod(shape) for shape in case.blocks.shapes[:-1]]
    for make in MAKERS:
        own = dict(make(case.blocks, scale=3.0).feedback.named_buffers())
        assert {n: tuple(b.shape) for n, b in own.items()} == {
            str(k): (3, size) for k, size in enumerate(sizes)
        }
        for k, size in enumerate(sizes):
            bound = 3 / math.sqrt(size)
            assert 0.8 * bound < own[str(k)].abs().max() <= bound
        (one,) = make(case.blocks, shared=True).feedback.buffers()
        assert one.shape == (3, max(sizes))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("network", NETWORKS)
def test_some_blocks_are_coarser_blocks(network: str, shared: bool) -> None:
    """Blocks without the error are one block with the next that has it; without any it is
    backpropagation. Bit for bit."""
    case = NETWORKS[network](torch.float64, 0.2)
    last = len(case.blocks) - 1
    for at in ((0,), (1,), ("1", 0), ()):
        some = rules.DirectFeedbackAlignment(case.blocks, shared=shared, at=at)
        ends = [*sorted(map(int, at)), last]
        starts = [0, *(end + 1 for end in ends[:-1])]
        parts = [
            nn.Sequential(*list(case.blocks)[a : b + 1]) for a, b in zip(starts, ends, strict=True)
        ]
        coarse = rules.DirectFeedbackAlignment(Blocks(parts, example=case.x), shared=shared)
        for mine, theirs in zip(some.feedback.buffers(), coarse.feedback.buffers(), strict=True):
            mine.copy_(theirs)
        assert [b.shape for b in some.feedback.buffers()] == [
            b.shape for b in coarse.feedback.buffers()
        ]
        gradients = []
        for rule in (some, coarse):
            torch.manual_seed(1)
            calls: list[int] = []
            rule.backward(case.x, case.y, on_block=calls.append)
            assert calls == [*reversed(range(len(rule.blocks)))]
            gradients.append([p.grad.clone() for p in case.blocks.parameters()])
            case.blocks.zero_grad()
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    torch.manual_seed(1)
    F.cross_entropy(case.model(case.x), case.y).backward()
    for p, g in zip(case.blocks.parameters(), gradients[0], strict=True):
        assert torch.equal(p.grad, g)


@pytest.mark.parametrize("network", ["mlp", "mlp_norm", "plain_cnn"])
def test_layers_of_one_block_are_blocks_of_one_layer(network: str) -> None:
    case = getattr(networks, network)(torch.float64)
    rule = rules.DirectFeedbackAlignment(case.blocks)
    rule.backward(case.x, case.y)
    wanted = [p.grad.clone() for p in case.blocks.parameters()]
    case.blocks.zero_grad()
    one = rules.DirectFeedbackAlignment(Blocks([case.model], example=case.x), layers=True)
    for mine, theirs in zip(one.feedback.buffers(), rule.feedback.buffers(), strict=True):
        mine.copy_(theirs)
    one.backward(case.x, case.y)
    got = [p.grad for p in case.blocks.parameters()]
    assert all(torch.allclose(a, b, atol=1e-14) for a, b in zip(got, wanted, strict=True))


def _asked(e: Tensor, matrix: Tensor, x: Tensor, batch: int) -> Tensor:
    """What a layer's input x gets, element by element of all but the features."""
    asked = torch.zeros_like(x)
    if x.dim() == 4:
        return (e @ matrix).view(x.shape)
    for index in itertools.product(*map(range, x.shape[:-1])):
        sample = e[index[batch]]
        asked[index] = (sample[index[1 - batch]] if e.dim() == 3 else sample) @ matrix
    return asked


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("network", [*NETWORKS, "tokens"])
def test_layers_against_a_naive_implementation(network: str, shared: bool) -> None:
    """Every layer's input is the end of a graph of its own."""
    if network == "tokens":
        case = networks.transformer(torch.float64)
        layer = nn.TransformerEncoderLayer(8, 2, 8, 0.0, batch_first=True).double()
        parts = [nn.Embedding(9, 8).double(), layer, nn.Sequential(nn.Tanh(), nn.Linear(8, 3))]
        case.x, case.y = torch.randint(9, (6, 5)), torch.randint(3, (6, 5))
        case.blocks = Blocks([part.double() for part in parts], example=case.x)
    else:
        case = NETWORKS[network](torch.float64)
    sequence = network in ("tokens", "transformer")
    rule = rules.DirectFeedbackAlignment(case.blocks, scale=0.7, shared=shared, layers=True)
    rule.backward(case.x, case.y)
    got = grads(rule)
    rule.zero_grad()
    owners = {
        p: f"{k}/{n.replace('.', '/')}"
        for k, block in enumerate(case.blocks)
        for n, p in block.named_parameters()
    }
    read: list[tuple[str, Tensor]] = []

    def cut_off(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def layer(x: Tensor, weight: Tensor, *rest: object, **more: object) -> Tensor:
            if x.requires_grad:
                read.append((owners[weight], x))
            return op(x.detach(), weight, *rest, **more)

        return layer

    before = F.linear, F.conv2d
    F.linear, F.conv2d = cut_off(F.linear), cut_off(F.conv2d)
    outputs = [case.x]
    try:
        for block in case.blocks:
            outputs.append(block(outputs[-1].detach()))
    finally:
        F.linear, F.conv2d = before
    scores = outputs[-1].flatten(0, -2)
    loss = F.cross_entropy(scores, case.y.flatten())
    (e,) = torch.autograd.grad(loss, outputs[-1], retain_graph=True)

    def matrix(name: str) -> Tensor:
        if not shared:
            return rule.feedback.get_buffer(name)
        units = rule.feedback.units[name]
        return rule.feedback.get_buffer("all")[:, :units] * 0.7 / math.sqrt(units)

    roots, gradients = [*outputs[1:]], []
    for k, h in enumerate(outputs[1:-1]):
        rows = h if sequence else h.flatten(1)
        gradients.append(
            _asked(e, matrix(str(k)), rows, 0).view(h.shape)
            if rows.dim() == 3
            else (e @ matrix(str(k))).view(h.shape)
        )
    gradients.append(e)
    assert {name for name, _ in read} == rule.feedback.layers.keys()
    for name, x in read:
        roots.append(x)
        # nn.MultiheadAttention turns (B, T, D) into (T, B, D).
        turned = "in_proj" in name or ("out_proj" in name and x.dim() == 2)
        if x.dim() == 2 and sequence and len(x) > 6:
            x = x.view(-1, 6, x.shape[-1]) if turned else x.view(6, -1, x.shape[-1])
            gradients.append(_asked(e, matrix(name), x, int(turned)).flatten(0, 1))
        else:
            gradients.append(_asked(e, matrix(name), x, int(turned)))
    torch.autograd.backward(roots, gradients)
    assert_close(got, grads(rule), atol=1e-14)


class _Graph(nn.Module):
    """A graph convolution (Kipf & Welling 2017): A h W + b, A an adjacency of all nodes."""

    def __init__(self, adjacency: Tensor, features: int, out: int, last: bool = False):
        super().__init__()
        self.register_buffer("adjacency", adjacency)
        self.linear = nn.Linear(features, out)
        self.activation = nn.Identity() if last else nn.Tanh()

    def forward(self, h: Tensor) -> Tensor:
        return self.activation(self.adjacency @ self.linear(h))


@pytest.mark.parametrize("layers", [False, True])
def test_a_graph_network(layers: bool) -> None:
    """Nodes are tokens of one sample: three communities, of which some nodes have labels."""
    torch.manual_seed(0)
    n = 60
    y = torch.arange(n) % 3
    edges = torch.rand(n, n) < torch.where(y[:, None] == y, 0.25, 0.02)
    edges = (edges | edges.T | torch.eye(n, dtype=torch.bool)).float()
    degree = edges.sum(1)
    adjacency = edges / (degree[:, None] * degree).sqrt()
    x = F.one_hot(y, 3).float() + 1.5 * torch.randn(n, 3)
    x, labels = x[None], torch.where(torch.arange(n) < 18, y, -100)[None]
    parts = [_Graph(adjacency, 3, 16), _Graph(adjacency, 16, 16), _Graph(adjacency, 16, 3, True)]
    if layers:
        parts = [nn.Sequential(*parts)]
    rule = rules.DirectFeedbackAlignment(Blocks(parts, example=x), layers=layers)
    optimizer = torch.optim.Adam(rule.parameters(), 0.01)
    for _ in range(80):
        optimizer.zero_grad()
        rule.backward(x, labels)
        optimizer.step()
    right = rule(x)[0].argmax(1) == y
    assert right[18:].float().mean() > 0.9
    assert (x[0].argmax(1) == y)[18:].float().mean() < 0.75  # by its own features alone


def test_bad_input() -> None:
    for make in MAKERS:
        name = make.__name__
        with pytest.raises(ValueError, match=rf"{name}\(scale=0\): give a positive number"):
            make(networks.mlp().blocks, scale=0)
        with pytest.raises(ValueError, match="give an example"):
            make(Blocks([nn.Linear(6, 3), nn.Linear(3, 3)]))
        parts = [nn.Linear(6, 6), nn.Unflatten(1, (2, 3)), nn.Linear(3, 3)]
        with pytest.raises(
            ValueError, match=rf"{name}: the network gives scores for every token"
        ) as e:
            make(Blocks(parts, example=torch.randn(2, 6)))
        assert "\n" not in str(e.value)
    blocks = networks.mlp().blocks
    with pytest.raises(ValueError, match=r"DirectFeedbackAlignment\(at\): no block 'fc'") as e:
        rules.DirectFeedbackAlignment(blocks, at=("fc",))
    assert "\n" not in str(e.value)
    twice = nn.Conv2d(1, 1, 3)
    parts = [nn.Sequential(nn.Conv2d(1, 1, 1), twice, twice, nn.Flatten(), nn.Linear(4, 3))]
    with pytest.raises(ValueError, match=r"the layer of '1.weight' in block '0' reads") as e:
        rules.DirectFeedbackAlignment(Blocks(parts, example=torch.randn(2, 1, 6, 6)), layers=True)
    assert "\n" not in str(e.value)
