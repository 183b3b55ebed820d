import torch
import torch.nn.functional as F
from torch import nn

from layerwise.blocks.cost import flops, saved_bytes


def test_flops_of_a_linear_layer():
    # For each of B samples 5 x 7 multiply-adds, two operations each.
    assert flops(nn.Linear(5, 7), torch.randn(3, 5)) == 2 * 3 * 5 * 7


def test_flops_of_a_recurrent_layer():
    """Four gates, each of 5 units that read 6 inputs and 5 units, in 2 x 3 steps."""
    assert flops(nn.LSTM(6, 5, batch_first=True), torch.randn(2, 3, 6)) == 2 * 6 * 4 * 5 * (6 + 5)


def test_flops_of_attention():
    class Attention(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x)

    # Q K^T and A V: 2 * (2 * T * T * D) for each of B * H.
    assert flops(Attention(), torch.randn(2, 3, 8, 4)) == 2 * 3 * 4 * 8 * 8 * 4


def test_bytes_kept_for_backward():
    # The linear layer keeps its input (3, 5), tanh its output (3, 7); weights do not count.
    assert saved_bytes(nn.Sequential(nn.Linear(5, 7), nn.Tanh()), torch.randn(3, 5)) == 4 * (
        15 + 21
    )


def test_what_is_kept_twice_counts_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)

        def forward(self, x):
            return self.a(x) + self.b(x)

    assert saved_bytes(Twice(), torch.randn(3, 5)) == 4 * 15


def test_the_module_is_left_as_it_was():
    module = nn.Sequential(nn.BatchNorm1d(5), nn.Dropout())
    random = torch.get_rng_state()
    flops(module, torch.randn(3, 5, generator=torch.Generator()))
    saved_bytes(module, torch.randn(3, 5, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), random)
    assert module[0].num_batches_tracked == 0
    assert module.training
