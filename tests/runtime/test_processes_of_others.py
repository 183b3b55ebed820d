"""Rules in processes that other libraries started: sharded weights, and gradients that nobody
averages."""

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from layerwise import InputError, cut, rules
from layerwise.heads import Linear
from layerwise.runtime import DataParallel

pytestmark = pytest.mark.gloo
X, Y = torch.linspace(-1, 1, 64).view(8, 8).sin(), torch.arange(8) % 4


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def _network() -> Layers:
    torch.manual_seed(0)
    return Layers()


def _rule(model: nn.Module) -> rules.DGL:
    torch.manual_seed(1)
    return rules.DGL(cut(model, 3, example=X), head=Linear())


def _step(rule: rules.DGL, x: Tensor, y: Tensor) -> None:
    optimizer = torch.optim.SGD(rule.parameters(), 0.5)
    for _ in range(2):
        optimizer.zero_grad()
        rule.backward(x, y)
        optimizer.step()


def _start(rank: int, world: int, port: int) -> slice:
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    return slice(rank * 4, rank * 4 + 4)


def _sharded(rank: int, world: int, port: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mine = _start(rank, world, port)
    mesh = init_device_mesh("cpu", (world,))
    wanted = _rule(_network())
    wanted.synchronised = True
    for p in wanted.objectives.parameters():
        p.requires_grad_(False)  # FSDP does not average those of heads, which it does not hold
    _step(wanted, X, Y)
    for when in ("before", "after"):
        model = _network()
        rule = _rule(model) if when == "after" else None
        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        rule = rule or _rule(model)
        with pytest.raises(InputError, match="sharded parameters only, to which objectives"):
            rule.backward(X[mine], Y[mine])
        for p in rule.objectives.parameters():
            p.requires_grad_(False)
        _step(rule, X[mine], Y[mine])
        for ours, theirs in zip(model.parameters(), wanted.blocks.parameters(), strict=True):
            torch.testing.assert_close(ours.full_tensor(), theirs.data)
    dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.slow
@pytest.mark.skipif(
    torch.__version__ < "2.9",
    reason="on the CPU, FSDP adds gradients up instead of averaging them",
)
def test_fully_sharded_layers() -> None:
    mp.spawn(_sharded, (2, _free_port()), nprocs=2)


def _replicated(rank: int, world: int, port: int) -> None:
    mine = _start(rank, world, port)
    model = _network()
    with pytest.raises(InputError, match=r"cut the network inside, model.module"):
        cut(DistributedDataParallel(model), 3, example=X)
    rule = _rule(model)
    with pytest.raises(InputError, match=r"DataParallel\(rule\).backward") as caught:
        rule.backward(X[mine], Y[mine])
    assert "\n" not in str(caught.value)
    DataParallel(rule).backward(X[mine], Y[mine])  # what the message says
    found = [p.grad for p in rule.parameters()]
    wanted = _rule(_network())
    wanted.synchronised = True
    wanted.backward(X, Y)
    for ours, theirs in zip(found, wanted.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.grad)
    dist.destroy_process_group()


@pytest.mark.slow
def test_gradients_that_nobody_averages_are_refused() -> None:
    mp.spawn(_replicated, (2, _free_port()), nprocs=2)
