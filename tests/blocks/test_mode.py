"""What a forward does by `self.training` follows the mode after a cut."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layerwise import Blocks, InputError, cut

X = torch.randn(4, 1, 12, 12)


class Net(nn.Module):
    """The network of PyTorch's MNIST tutorial, with dropout as a function."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3)
        self.fc1, self.fc2 = nn.Linear(8 * 4 * 4, 16), nn.Linear(16, 10)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.dropout(torch.flatten(x, 1), training=self.training)
        x = F.dropout(F.relu(self.fc1(x)), 0.3, self.training)
        return F.log_softmax(self.fc2(x), dim=1)


def draws(chain):
    """Whether two runs differ."""
    return not torch.equal(chain(X), chain(X))


@pytest.mark.parametrize("blocks", [2, 3, "all"])
@pytest.mark.parametrize("start_in", [True, False])
def test_functional_dropout(blocks, start_in):
    model = Net().train(start_in)
    chain = cut(model, blocks, example=X)
    assert draws(chain) == start_in
    for owner in (model, chain, model):
        owner.eval()
        assert not draws(chain)
        assert torch.equal(chain(X), model.eval()(X))
        owner.train()
        assert draws(chain)


def test_train_mode_is_the_models():
    model = Net()
    chain = cut(model, 3, example=X)
    torch.manual_seed(3)
    expected = model.train()(X)
    torch.manual_seed(3)
    assert torch.equal(chain(X), expected)


def test_a_copy_follows_its_own_mode():
    chain = cut(Net(), 3, example=X)
    twin = copy.deepcopy(chain)
    twin.eval()
    assert not draws(twin)
    assert draws(chain)


def test_a_constant_that_depends_on_the_mode():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, dim=-1)
            p = 0.5 if self.training else 0.0
            return self.out(F.scaled_dot_product_attention(q, k, v, dropout_p=p))

    model = Attention()
    chain = cut(model, 2, example=X)
    assert draws(chain)
    assert not draws(chain.eval())


def test_another_path_in_train_mode_is_refused_where_a_cut_divides_it():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 12)

        def forward(self, x):
            h = self.a(x)
            if self.training:
                h = h + torch.randn_like(h)
            return self.b(h)

    with pytest.raises(InputError, match="'Noisy' does something else in train mode"):
        cut(Noisy(), 2, example=X)
    inner = nn.Sequential(nn.Linear(12, 12), Noisy(), nn.Linear(12, 12))
    chain = cut(inner, at=["1", "2"], example=X)  # whole, it is called as it is
    assert isinstance(chain, Blocks)
    assert draws(chain)
    assert not draws(chain.eval())
