"""Cut points, the modules and tensors that blocks share with the model, and that `cut` leaves the
model unchanged."""

import copy
import warnings
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
import torchvision
from forwards import TOKENS, Layers, X, Y, network
from torch import nn
from torch.utils import _pytree as pytree

from layerwise import Blocks, InputError, cut, rules

torch.manual_seed(0)
IMAGES = torch.randn(3, 3, 16, 16)


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        h = self.relu(self.bn1(self.conv1(x)))
        h = self.bn2(self.conv2(h))
        h += x
        return self.relu(h)


class SmallResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(True))
        self.layer1 = nn.Sequential(Residual(8), Residual(8))
        self.layer2 = nn.Sequential(Residual(8), Residual(8))
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        h = self.layer2(self.layer1(self.stem(x)))
        h = F.adaptive_avg_pool2d(h, 1)
        h = h.view(h.size(0), -1)
        return self.fc(h)


def vgg():
    layers, channels = [], 3
    for width in (4, 4, 8):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(True)]
        layers += [nn.MaxPool2d(2)]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 4, 10))


def same_as_model(model, chain, x):
    model.eval(), chain.eval()
    with torch.no_grad():
        return torch.equal(model(x), chain(x))


def kinds(block):
    return [type(m).__name__ for m in block.modules() if not list(m.children())]


def test_every_layer_its_own_block():
    chain = cut(vgg(), "all", example=IMAGES)
    layer = ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"]
    assert [kinds(b) for b in chain] == [layer, layer, layer, ["Flatten", "Linear"]]
    assert chain.names == ("0", "4", "8", "12")
    assert chain.input_shape == (3, 16, 16)
    assert chain.shapes == ((4, 8, 8), (4, 4, 4), (8, 2, 2), (10,))


def test_residuals_stay_whole():
    chain = cut(SmallResNet(), "all", example=IMAGES)
    assert chain.names == ("stem", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "fc")


@pytest.mark.parametrize("blocks", [1, 2, 3, 4, "all"])
@pytest.mark.parametrize("build", [vgg, SmallResNet])
def test_output_is_the_models(build, blocks):
    model = build()
    chain = cut(model, blocks, example=IMAGES)
    for x in (IMAGES, IMAGES[:1], torch.randn(5, 3, 16, 16)):
        assert same_as_model(model, chain, x)


@pytest.mark.parametrize("balance", ["flops", "memory"])
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training, balance):
    model = SmallResNet().train(training)
    model.layer1.eval()
    state = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    attributes = [sorted(m.__dict__) for m in model.modules()]
    random = torch.get_rng_state()
    chain = cut(model, 3, example=IMAGES, balance=balance)
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in model.modules()] == modes
    assert [sorted(m.__dict__) for m in model.modules()] == attributes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(b.training == training for b in chain)


def test_every_parameter_is_in_exactly_one_block():
    model = SmallResNet()
    chain = cut(model, 4, example=IMAGES)
    ids = [id(p) for block in chain for p in block.parameters()]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    modules = set(model.modules())
    assert all(m in modules for b in chain for m in b.modules() if not list(m.children()))


def test_state_dict_has_the_models_names():
    model = SmallResNet()
    chain = cut(model, 4, example=IMAGES)
    assert list(chain.state_dict()) == [f"model.{name}" for name in model.state_dict()]
    of_blocks = [name for block in chain for name in block.state_dict()]
    assert sorted(of_blocks) == sorted(model.state_dict())


def test_gradients_are_the_models():
    model = SmallResNet().train()
    y = torch.tensor([1, 2, 3])
    twin = copy.deepcopy(model)
    F.cross_entropy(twin(IMAGES), y).backward()
    F.cross_entropy(cut(model, 3, example=IMAGES)(IMAGES), y).backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    assert torch.equal(model.stem[1].running_mean, twin.stem[1].running_mean)


def test_copies_and_state_dicts():
    model = SmallResNet()
    chain = cut(model, 3, example=IMAGES).eval()
    twin = copy.deepcopy(chain)
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
    expected = twin(IMAGES)
    assert torch.equal(expected, chain(IMAGES))
    with torch.no_grad():
        for p in chain.parameters():
            p.add_(1)
    assert torch.equal(twin(IMAGES), expected)
    chain.load_state_dict(twin.state_dict())
    assert torch.equal(model.eval()(IMAGES), expected)


def test_cut_at_names():
    model = SmallResNet()
    chain = cut(model, at=["layer2", "layer1.1"], example=IMAGES)
    assert chain.names == ("stem", "layer1.1", "layer2")
    assert same_as_model(model, chain, IMAGES)
    again = cut(model, at=chain.names[1:], example=IMAGES)
    assert again.names == chain.names
    assert len(cut(model, at=["stem", "fc"], example=IMAGES)) == 2  # the first begins anyway
    assert len(cut(model, at=[], example=IMAGES)) == 1


def test_balance_by_flops():
    # Costs of the linear layers in units of 2 * 8 * 8 FLOPs per sample: 1 1 1 | 3 | 3 1.
    sizes = [8, 8, 8, 8, 24, 8, 8]
    model = nn.Sequential(*(nn.Linear(i, o) for i, o in pairwise(sizes)))
    chain = cut(model, 3, example=torch.randn(2, 8))
    assert chain.names == ("0", "3", "4")


def test_balance_by_memory():
    # Activations shrink by four where channels double: early layers take more memory than FLOPs.
    model = nn.Sequential(
        *(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()),
        *(nn.Conv2d(16, 64, 3, 2, 1), nn.ReLU(), nn.Conv2d(64, 64, 3, 1, 1), nn.ReLU()),
    )
    x = torch.randn(2, 8, 32, 32)
    assert cut(model, 2, example=x).names == ("0", "6")
    assert cut(model, 2, example=x, balance="memory").names == ("0", "2")


def test_sizes_that_cross_a_cut():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
            self.fc = nn.Linear(3 * 8 * 8, 5)

        def forward(self, x):
            batch = x.size(0)
            h = self.c(self.b(self.a(x)))
            return self.fc(h.view(batch, -1))

    model, x = Net(), torch.randn(4, 3, 8, 8)
    chain = cut(model, "all", example=x)
    assert chain.names == ("a", "b", "c", "fc")
    for batch in (1, 4, 7):
        assert same_as_model(model, chain, torch.randn(batch, 3, 8, 8))


def test_a_size_that_what_crosses_does_not_tell():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Conv2d(3, 3, 3, 2, 1)
            self.mid = nn.Conv2d(3, 3, 3, 2, 1)
            self.head = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            size = x.shape[-2:]
            return self.head(F.interpolate(self.mid(self.down(x)), size=size))

    model = Net()
    chain = cut(model, at=["mid", "head"], example=IMAGES)
    assert chain.names == ("down", "mid", "head")
    for x in (IMAGES, torch.randn(2, 3, 20, 12)):
        assert same_as_model(model, chain, x)
        with torch.no_grad():
            assert torch.equal(chain.outputs(x)[-1], model(x))


def test_constants_and_parameters_of_an_opened_module():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(11, 8)
            self.scale = nn.Parameter(torch.ones(8))
            self.register_buffer("shift", torch.ones(8), persistent=False)
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, tokens):
            at = torch.arange(tokens.shape[1], device=tokens.device)
            h = self.embed(tokens) + torch.sin(at)[None, :, None]
            h = self.a(h * self.scale)
            return self.b(h + self.shift) * torch.tensor(2.0)

    model, x = Net(), torch.randint(11, (3, 6))
    chain = cut(model, 2, example=x)
    assert chain.names == ("embed", "b")
    assert same_as_model(model, chain, torch.randint(11, (2, 9)))
    assert {k.split(".", 1)[1] for k in chain.state_dict()} == set(model.state_dict())
    with torch.no_grad():
        assert torch.equal(chain.outputs(x)[-1], model(x))


def test_a_branch_on_values():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x):
            return self.inner(x) if x.sum() > 0 else self.inner(-x)

    model = nn.Sequential(nn.Linear(8, 8), Odd(), nn.Linear(8, 8))
    x = torch.randn(4, 8)
    chain = cut(model, at=["1", "2"], example=x)
    assert chain.names == ("0", "1", "2")
    model.eval()
    for inputs in (x, -x, 5 * torch.randn(4, 8)):
        with torch.no_grad():
            assert torch.equal(chain.outputs(inputs)[-1], model(inputs))


def test_a_module_used_twice_without_parameters():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3)
            self.pool, self.fc = nn.MaxPool2d(2), nn.Linear(6 * 2 * 2, 4)

        def forward(self, x):
            x = self.pool(F.relu(self.conv1(x)))
            x = self.pool(F.relu(self.conv2(x)))
            return self.fc(torch.flatten(x, 1))

    model = Net()
    chain = cut(model, "all", example=IMAGES)
    assert chain.names == ("conv1", "conv2", "fc")
    assert same_as_model(model, chain, IMAGES[:1])


def test_transformer_encoder_of_torch():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.Sequential(
        nn.Linear(4, 16), nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    )
    x = torch.randn(2, 5, 4)
    chain = cut(model, at=["1.layers.1", "1.layers.2"], example=x)
    assert chain.names == ("0", "1.layers.1", "1.layers.2")
    assert same_as_model(model, chain, x)


def test_gpt_by_hand():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
            self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
            self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

        def forward(self, x):
            B, T, C = x.size()
            q, k, v = self.qkv(self.norm1(x)).split(C, dim=2)
            q, k, v = (h.view(B, T, 2, C // 2).transpose(1, 2) for h in (q, k, v))
            h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(h.transpose(1, 2).contiguous().view(B, T, C))
            return x + self.mlp(self.norm2(x))

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.wpe = nn.Embedding(11, 16), nn.Embedding(8, 16)
            self.layers = nn.ModuleList(Block() for _ in range(3))
            self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 11)

        def forward(self, tokens, targets=None):
            _, T = tokens.size()
            assert T <= 8, f"at most 8 tokens, got {T}"
            x = self.wte(tokens) + self.wpe(torch.arange(0, T, device=tokens.device))
            for layer in self.layers:
                x = layer(x)
            logits = self.head(self.norm(x))
            return logits if targets is None else F.cross_entropy(logits.mT, targets)

    model, tokens = GPT(), torch.randint(11, (3, 6))
    chain = cut(model, at=["layers.0", "layers.1", "layers.2", "head"], example=tokens)
    assert chain.names == ("wte", "layers.0", "layers.1", "layers.2", "head")
    assert kinds(chain[2])[0] == "LayerNorm"
    assert isinstance(cut(model, "all", example=tokens), Blocks)
    for x in (tokens, tokens[:1, :3], torch.randint(11, (5, 8))):
        assert same_as_model(model, chain, x)


def test_the_batch_size_where_what_crosses_has_other_rows():
    class Net(nn.Module):
        def __init__(self, flat=False):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 2)
            self.flat = flat

        def forward(self, x):
            x = x.view(-1, 4) if self.flat else x
            h = self.b(self.a(x).view(-1, 4))  # (2B, 4)
            return self.c(h.view(-1, 8))

    model, x = Net(), torch.randn(3, 2, 4)
    with pytest.raises(InputError, match=r"shape \(4, 4\) .*no axis of it is the batch of 2"):
        cut(Net(flat=True), at=["b"], example=x)
    chain = cut(model, "all", example=x)
    assert chain.names == ("a", "b", "c")
    assert chain.shapes == ((2, 4), (8,), (2,))
    assert all(same_as_model(model, chain, torch.randn(n, 2, 4)) for n in (1, 3, 5))


def test_one_block_is_the_model():
    model = vgg()
    chain = cut(model, 1, example=IMAGES)
    assert chain.names == ("Sequential",)
    assert same_as_model(model, chain, IMAGES)
    assert list(chain[0].parameters()) == list(model.parameters())


def test_hooks_and_attributes_left_by_a_forward():
    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.last = nn.Linear(4, 4), nn.Linear(4, 4), None

        def forward(self, x):
            self.last = self.a(x)
            return self.b(self.last)

    model = Remembers()
    cut(model, 2, example=torch.randn(2, 4))
    assert model.last is None


class TestErrors:
    def refused(self, match, model=None, *args, example=IMAGES, **kwargs):
        with pytest.raises(InputError, match=match) as caught:
            cut(model or SmallResNet(), *args, example=example, **kwargs)
        assert "\n" not in str(caught.value)

    def test_no_such_module(self):
        self.refused(r"no module 'layer11'; did you mean 'layer1.1'\?", at=["layer11"])

    def test_several_tensors_cross(self):
        self.refused(
            r"2 tensors cross before 'layer1.0.conv2' \(from 'stem.2', 'layer1.0.relu'\); "
            r"exactly one may: cut at 'layer1' or 'layer1.1'",
            at=["layer1.0.conv2"],
        )

    def test_too_many_blocks(self):
        self.refused("SmallResNet has 5 cut points; give blocks=6 or fewer", None, 7)

    def test_blocks_and_at(self):
        self.refused("got both", None, 2, at=["layer1"])

    @pytest.mark.parametrize("blocks", [0, -1, 2.5, "every", True])
    def test_blocks(self, blocks):
        self.refused('give a number of blocks, at least 1, or "all"', None, blocks)

    def test_balance(self):
        self.refused("cut\\(balance='flop'\\): did you mean 'flops'", None, 2, balance="flop")

    def test_no_example(self):
        self.refused("give a batch that the model takes", None, 2, example=None)
        self.refused("give a batch that the model takes", None, 2, example=torch.zeros(0, 3))

    def test_example_that_does_not_fit(self):
        self.refused("cannot take a tensor of shape", None, 2, example=torch.randn(2, 5, 8, 8))

    def test_names(self):
        self.refused("begin at the same place", at=["layer2", "layer2.0"])
        self.refused("begin at the same place", at=["layer2", "layer2"])
        self.refused("give a list of names", at="layer2")

    def test_not_a_module(self):
        with pytest.raises(InputError, match="got function"):
            cut(lambda x: x, 2, example=IMAGES)

    def test_not_called(self):
        model = SmallResNet()
        model.spare = nn.Linear(2, 2)
        self.refused("does not call 'spare'", model, at=["spare"])

    def test_shared_parameter(self):
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4))
        model[3].weight = model[0].weight
        x = torch.randn(2, 4)
        chain = cut(model, "all", example=x)
        assert chain.shared == {"0.weight": [0, 2]}
        assert {n for n, _ in chain[2].named_parameters()} == {"3.weight", "3.bias"}
        with pytest.raises(InputError, match=r"'0.weight' .* is used by blocks '0', '3'"):
            chain.keep([1])

    def test_in_place_on_another_blocks_output(self):
        self.refused("block '2' changes its input in place", vgg(), at=["2"])

    def test_output_that_is_no_tensor(self):
        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.a = nn.Conv2d(3, 3, 1)

            def forward(self, x):
                return {"left": self.a(x), "right": self.a(-x)}

        self.refused("returns dict with left, right, and it is not clear", Two(), 1)
        chain = cut(Two(), 1, example=IMAGES, output="right")
        assert torch.equal(chain(IMAGES), chain.model.a(-IMAGES))
        chain = cut(Two(), 1, example=IMAGES, output=lambda found: found["left"])
        assert torch.equal(chain(IMAGES), chain.model.a(IMAGES))
        self.refused("output='middle' gives NoneType", Two(), 1, output="middle")

    def test_no_gradient(self):
        self.refused("no gradient reaches the network's output", nn.ReLU(), 1)


@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_1", "shufflenet_v2_x0_5", "googlenet"])
def test_torchvision(name):
    kwargs = {"init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=10, **kwargs)
    assert same_as_model(
        model, cut(model, 4, example=torch.randn(1, 3, 64, 64)), torch.randn(2, 3, 64, 64)
    )


def test_scores_of_a_network_with_auxiliary_classifiers():
    model = torchvision.models.googlenet(weights=None, num_classes=10, init_weights=False)
    x = torch.randn(2, 3, 64, 64)
    for blocks in (1, 3):
        chain = cut(model, blocks, example=x).train()
        assert chain(x).shape == (2, 10)
        assert chain.outputs(x)[-1].shape == (2, 10)


def test_uncounted_layers_are_layers():
    """PyTorch does not count the FLOPs of an LSTM's kernel."""
    model, inputs = network("LSTMs")
    assert cut(model, "all", example=inputs).names == ("embed", "second", "last")


def test_an_end_without_parameters_is_no_block():
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)
            self.register_buffer("adjacency", torch.rand(4, 4))

        def forward(self, x):
            return self.adjacency @ self.last(torch.relu(self.adjacency @ self.first(x)))

    model = Graph()
    chain = cut(model, "all", example=X)
    assert chain.names == ("first", "last")
    rules.DGL(chain).backward(X, Y)
    assert all(p.grad is not None for p in model.parameters())


class TestNetworksThatCannotBePaused:
    def refused(self, model, match, example=X):
        with pytest.raises(InputError, match=match) as caught:
            cut(model, 2, example=example)
        assert "\n" not in str(caught.value)

    def test_wrapped_networks(self):
        self.refused(nn.DataParallel(Layers()), "model.module")
        self.refused(torch.compile(Layers()), "compile its blocks")

    def test_torchscript(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer versions of PyTorch advise against it
            scripted = torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)))
        self.refused(scripted, "TorchScript")

    def test_parameters_that_are_not_there(self):
        self.refused(nn.Sequential(nn.LazyLinear(6), nn.Linear(6, 3)), "run the network on a batch")
        self.refused(Layers().to("meta"), r"to_empty\(device=...\)")

    def test_lazy_after_its_first_run(self):
        model = nn.Sequential(nn.LazyLinear(6), nn.Linear(6, 3))
        model(X)
        assert len(cut(model, 2, example=X)) == 2


def test_in_place_in_train_mode_alone():
    class Scales(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(6, 6)

        def forward(self, h):
            return self.f(h.mul_(1.5) if self.training else h)

    model = nn.Sequential(nn.Linear(6, 6), Scales(), nn.Linear(6, 3))
    assert cut(model, "all", example=X).names == ("0", "2")
    with pytest.raises(InputError, match="changes its input in place"):
        cut(model, at=["1"], example=X)


def test_as_many_positions_as_samples():
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(9, 6)
            self.layers = nn.ModuleList(nn.TransformerEncoderLayer(6, 2, 8) for _ in range(2))
            self.last = nn.Linear(6, 3)

        def forward(self, ids):
            h = self.embed(ids).transpose(0, 1)
            for layer in self.layers:
                h = layer(h)
            return self.last(h.mean(0))

    model = Sequence()
    for example in (torch.randint(9, (4, 2)), {"ids": torch.randint(9, (4, 4))}):
        chain = cut(model, 2, example=example)
        assert [b.axis for b in chain.boundaries] == [1]


def test_what_cut_leaves_alone():
    class Remembers(Layers):
        def __init__(self):
            super().__init__()
            self.memory, self.generator = torch.zeros(6), torch.Generator().manual_seed(1)
            self.cache = {}

        def between(self, h, k):
            self.memory.mul_(0.5).add_(h.detach().mean(0))
            self.cache[k] = h
            return h + torch.rand(6, generator=self.generator)

    model = Remembers()
    state = model.generator.get_state()
    cut(model, "all", example=X)
    assert not model.memory.any()
    assert not model.cache
    assert torch.equal(model.generator.get_state(), state)
    embedding = nn.Sequential(nn.Embedding(9, 6, max_norm=0.1), nn.Flatten(), nn.Linear(30, 3))
    weight = embedding[0].weight.detach().clone()
    cut(embedding, 1, example=TOKENS)
    assert torch.equal(embedding[0].weight, weight)


def test_at_a_module_with_a_layer_that_was_called_before():
    layer = nn.Linear(4, 4)
    network = nn.Sequential(layer, nn.ReLU(), nn.Sequential(layer, nn.ReLU()), nn.Linear(4, 3))
    blocks = cut(network, at=["2", "3"], example=torch.randn(2, 4))
    assert blocks.names == ("0", "2", "3")
    assert blocks.shared == {"0.weight": [0, 1], "0.bias": [0, 1]}


class Keyless(dict):
    """As the outputs of transformers 4: a mapping, registered as a pytree without its keys."""


class Sealed:
    """Registered without its keys, and not a mapping."""

    def __init__(self, h):
        self.h = h


pytree.register_pytree_node(
    Keyless,
    lambda d: (list(d.values()), list(d)),
    lambda v, keys: Keyless(zip(keys, v, strict=True)),
)
pytree.register_pytree_node(Sealed, lambda s: ([s.h], None), lambda v, _: Sealed(v[0]))


@pytest.mark.parametrize("wrap", [Keyless, Sealed])
def test_outputs_registered_without_keys(wrap):
    class Wraps(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(6, 6)

        def forward(self, h):
            h = self.f(h)
            return Keyless(h=[h]) if wrap is Keyless else Sealed(h)

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = Wraps(), nn.Linear(6, 3)

        def forward(self, x):
            out = self.first(x)
            return self.last(torch.tanh(out["h"][0] if wrap is Keyless else out.h))

    model = Whole()
    blocks = cut(model, 2, example=X)
    assert torch.equal(blocks(X), model(X))
    rules.DGL(blocks).backward(X, Y)
    assert all(p.grad is not None for p in model.parameters())
