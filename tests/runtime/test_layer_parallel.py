"""Stages in processes of their own give the serial runtime's gradients, bit for bit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import networks
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from layerwise import Blocks, InputError, objectives, rules
from layerwise.objectives import Inpaint
from layerwise.objectives.batch import Batch
from layerwise.rules.base import LocalRule
from layerwise.runtime import DataParallel, LayerParallel, Runtime, Serial, StepOptions
from layerwise.runtime.layer_parallel import PARALLEL

pytestmark = pytest.mark.gloo
STEPS = 4


def _in_processes(run: Callable, args: tuple, nprocs: int) -> None:
    mp.set_forkserver_preload(["layerwise", "torchvision"])  # once, not in every process
    mp.start_processes(run, args, nprocs, start_method="forkserver")


def _rule(network: str) -> tuple[LocalRule, list[tuple[torch.Tensor, torch.Tensor]]]:
    torch.manual_seed(0)
    rule: LocalRule
    if network == "holes":  # a view, whose randomness every stage must find for itself
        case = networks.cnn()
        rule = rules.Greedy(case.blocks, Inpaint(region="random"))
    elif network == "reconciled":  # something travels with the activation
        case = networks.transformer()
        rule = rules.SGR(case.blocks, 0.3, networks.SMALL_HEAD)
    else:
        case = getattr(networks, network)()
        rule = rules.DGL(case.blocks, head=networks.SMALL_HEAD)
    generator = torch.Generator().manual_seed(1)
    data = []
    for k in range(STEPS):
        b = 3 if k == STEPS - 1 else 6  # the last batch is smaller
        x = torch.randn(b, *case.x.shape[1:], generator=generator)
        data.append((x, torch.randint(networks.CLASSES, (b,), generator=generator)))
    return rule, data


def _train(runtime: Runtime, data: list) -> dict:
    rule, blocks = runtime.rule, runtime.blocks
    optimizers = {i: torch.optim.SGD(rule.parameters_of(i), 0.1, 0.9) for i in blocks}

    def step(i: int) -> None:
        optimizers[i].step()
        optimizers[i].zero_grad()

    reports = [runtime.backward(x, y, StepOptions(on_block=step)) for x, y in data]
    return {
        "weights": {
            f"{i}.{k}": p.detach().clone()
            for i in blocks
            for k, p in enumerate(rule.parameters_of(i))
        },
        "buffers": {
            f"{i}.{n}": b.clone() for i in blocks for n, b in rule.blocks[i].named_buffers()
        },
        "losses": [[r.local_losses[i] for i in blocks] for r in reports],
    }


def _join(rank: int, folder: str, world: int) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)


def _stage(rank: int, folder: str, network: str, starts: list[int]) -> None:
    _join(rank, folder, len(starts))
    rule, data = _rule(network)
    stage = LayerParallel(rule, starts)
    found = _train(stage, data)
    stage.close()
    torch.save(found, os.path.join(folder, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()


def _accumulate(rule: LocalRule, data: list, backward: Callable) -> None:
    # Every block's random numbers are its own, as a trainer sees to it.
    for k, (x, y) in enumerate(data):
        seed = lambda i, k=k: torch.default_generator.manual_seed(100 * k + i)  # noqa: E731
        backward(x, y, StepOptions(before_block=seed))


def _synthetic(network: str) -> tuple[rules.DNI, list]:
    """The MLP learns on predicted inputs, too."""
    _, data = _rule(network)
    torch.manual_seed(0)
    case = getattr(networks, network)()
    unlocked = network == "mlp"
    rule = rules.DNI(
        case.blocks, networks.SmallSynthesizer, context=True, synthetic_inputs=unlocked
    )
    return rule, data


def _synthetic_stage(rank: int, folder: str, network: str, starts: list[int]) -> None:
    _join(rank, folder, len(starts))
    rule, data = _synthetic(network)
    stage = LayerParallel(rule, starts)
    _accumulate(rule, data, stage.backward)
    stage.close()
    here = {id(p) for i in stage.blocks for p in rule.parameters_of(i)}
    assert all(id(p) in here for p in rule.parameters() if p.grad is not None)
    torch.save(networks.grads(rule), os.path.join(folder, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("network", "starts"),
    [
        ("mlp", [0, 1]),
        pytest.param("cnn", [0, 2], marks=pytest.mark.slow),
        pytest.param("transformer", [0, 1, 3], marks=pytest.mark.slow),
    ],
)
def test_synthetic_gradients(network: str, starts: list[int], tmp_path: Path) -> None:
    """Targets travel back on their own time: between steps their order and number are those of the
    serial loop, so what accumulates is the same, bit for bit."""
    _in_processes(_synthetic_stage, (str(tmp_path), network, starts), nprocs=len(starts))
    rule, data = _synthetic(network)
    _accumulate(rule, data, Serial(rule).backward)
    got: dict[str, torch.Tensor] = {}
    for rank in range(len(starts)):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert not got.keys() & found.keys()  # every gradient lives in one process
        got |= found
    networks.assert_same(got, networks.grads(rule))


def _in_phases() -> tuple[rules.Sequential, list]:
    _, data = _rule("cnn")
    torch.manual_seed(0)
    case = networks.cnn()
    return rules.Sequential(case.blocks, objectives.Classify(networks.SMALL_HEAD)), data


def _train_in_phases(rule: rules.Sequential, data: list, backward: Callable) -> None:
    for phase in range(len(rule.blocks)):
        rule.begin(phase)
        rule.train()
        for x, y in data:
            backward(x, y)


def _stage_in_phases(rank: int, folder: str) -> None:
    _join(rank, folder, 2)
    rule, data = _in_phases()
    stage = LayerParallel(rule, [0, 2])
    _train_in_phases(rule, data, stage.backward)
    stage.close()
    torch.save(networks.grads(rule), os.path.join(folder, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()


def test_one_block_after_the_other(tmp_path: Path) -> None:
    """A stage before the active block's sends outputs on; one after it takes them and rests."""
    _in_processes(_stage_in_phases, (str(tmp_path),), nprocs=2)
    rule, data = _in_phases()
    _train_in_phases(rule, data, rule.backward)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert not first.keys() & second.keys()
    networks.assert_same(first | second, networks.grads(rule))


@pytest.mark.parametrize(
    ("network", "starts"),
    [
        pytest.param("mlp", [0, 1], marks=pytest.mark.slow),
        ("cnn", [0, 2]),
        pytest.param("transformer", [0, 1, 3], marks=pytest.mark.slow),
        pytest.param("holes", [0, 2], marks=pytest.mark.slow),
        pytest.param("reconciled", [0, 1, 3], marks=pytest.mark.slow),
    ],
)
def test_stages_are_the_serial_loop(network: str, starts: list[int], tmp_path: Path) -> None:
    _in_processes(_stage, (str(tmp_path), network, starts), nprocs=len(starts))
    rule, data = _rule(network)
    wanted = _train(Serial(rule), data)
    got: dict = {"weights": {}, "buffers": {}}
    losses = []
    for rank in range(len(starts)):
        found = torch.load(tmp_path / f"{rank}.pt")
        got["weights"] |= found["weights"]
        got["buffers"] |= found["buffers"]
        losses.append(found["losses"])
    for kind in ("weights", "buffers"):
        networks.assert_same(got[kind], wanted[kind])
    for step in range(STEPS):
        together = [loss for stage in losses for loss in stage[step]]
        assert all(torch.equal(a, b) for a, b in zip(together, wanted["losses"][step], strict=True))


# The first way of making each rule meets both networks, its further ways the CNN.
EVERY_RULE = {
    f"{name}-{network}": (make, network)
    for of_rule in networks.RULES.values()
    for number, (name, make) in enumerate(of_rule.items())
    for network in (("cnn", "transformer") if number == 0 else ("cnn",))
}


def _every_rule() -> Iterator[tuple[str, LocalRule, list]]:
    """Each rule whose blocks may live apart, with its batches; anew, and always the same."""
    for name, (make, network) in EVERY_RULE.items():
        torch.manual_seed(0)
        case = getattr(networks, network)()
        rule = make(case.blocks)
        if isinstance(rule, LocalRule) and not rule.needs & ~PARALLEL:
            yield name, rule, _rule(network)[1][-2:]
    for network, ways in networks.OWN_NETWORKS.values():
        for name, make in ways.items():
            torch.manual_seed(0)
            case = network()
            rule = make(case.blocks)
            if isinstance(rule, LocalRule) and not rule.needs & ~PARALLEL:
                yield name, rule, [(case.x, case.y)] * 2


def _every_stage(rank: int, folder: str) -> None:
    _join(rank, folder, 2)
    found = {}
    for name, rule, data in _every_rule():
        stage = LayerParallel(rule, [0, 2])
        _accumulate(rule, data, stage.backward)
        stage.close()
        found[name] = networks.grads(rule)
    torch.save(found, os.path.join(folder, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()


def test_every_rule(tmp_path: Path) -> None:
    """Two stages of every rule that needs no more than forward information: over several batches
    each gradient is in one of them, and is the serial loop's."""
    _in_processes(_every_stage, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first.keys() >= {"dgl-cnn", "sgr-transformer", "local_critic-cnn", "cdni-cnn"}
    assert first.keys() >= {"direct_random_target_projection-transformer", "noprop"}
    assert "diffusion_blocks" in first
    assert first.keys() >= {"local_forward_gradient-cnn", "local_forward_gradient_weights-cnn"}
    assert "forward_forward-cnn" in first
    assert "forward_forward_hard-cnn" not in first
    for name, rule, data in _every_rule():
        _accumulate(rule, data, Serial(rule).backward)
        assert not first[name].keys() & second[name].keys()
        networks.assert_same(first.pop(name) | second.pop(name), networks.grads(rule))
    assert not first


class _Spread(objectives.Objective):
    """Mean square distance of every augmented view's output to the first view's; and mean(x^2)."""

    needs_views = 2  # type: ignore[assignment]

    def forward(self, activity: objectives.Activity, batch: Batch) -> torch.Tensor:
        augmented = activity.augmented
        assert augmented is not None
        assert len(batch.x) == len(batch.labels) == len(activity.output)
        return (augmented - augmented[:1]).square().mean() + batch.x.square().mean()


def _views() -> tuple[rules.Greedy, list]:
    """Block 1 compares three views, block 2 does not; blocks read the input, wherever they are."""
    _, data = _rule("plain_cnn")
    torch.manual_seed(0)
    case = networks.plain_cnn()
    head = objectives.Classify(networks.SMALL_HEAD)
    rule = rules.Greedy(case.blocks, [_Spread() + head, _Spread(), objectives.Classify()])
    return rule, [(torch.cat([x, x.flip(-1), 2 * x]), y) for x, y in data]


def _views_stage(rank: int, folder: str, starts: list[int]) -> None:
    _join(rank, folder, len(starts))
    rule, data = _views()
    stage = LayerParallel(rule, starts)
    reports = [stage.backward(x if stage.reads_input else None, y) for x, y in data]
    stage.close()
    found = {"grads": networks.grads(rule), "logits": [r.logits for r in reports]}
    torch.save(found, os.path.join(folder, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("starts", [pytest.param([0, 1], marks=pytest.mark.slow), [0, 2]])
def test_augmented_views_travel(starts: list[int], tmp_path: Path) -> None:
    _in_processes(_views_stage, (str(tmp_path), starts), nprocs=2)
    rule, data = _views()
    logits = [rule.backward(x, y).logits for x, y in data]
    first, last = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    networks.assert_same(first["grads"] | last["grads"], networks.grads(rule))
    for a, b in zip(last["logits"], logits, strict=True):
        assert torch.equal(a, b)
        assert len(a) in (3, 6)


def _replica(rank: int, folder: str, starts: list[int] | None) -> None:
    """Each of two replicas takes half of every batch; its gradients go into a file."""
    world = 2 * len(starts or [0])
    _join(rank, folder, world)
    rule, data = _whole()
    runtime = DataParallel(rule) if starts is None else LayerParallel(rule, starts, replicas=2)
    order: list[int] = []
    for k, (x, y) in enumerate(data):
        half = slice(3 * (rank % 2), 3 * (rank % 2) + 3)
        last = k == len(data) - 1
        options = StepOptions(lambda loss: loss / len(data), order.append, completes=last)
        runtime.backward(x[half], y[half], options)
    assert order == list(runtime.blocks) * len(data)
    runtime.close()
    torch.save(networks.grads(rule), os.path.join(folder, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()


def _whole() -> tuple[rules.DGL, list]:
    torch.manual_seed(0)
    case = networks.plain_cnn(torch.float64)
    rule = rules.DGL(case.blocks, head=networks.SMALL_HEAD)
    data = [(torch.randn_like(case.x), torch.randint(networks.CLASSES, (6,))) for _ in range(2)]
    return rule, data


@pytest.mark.parametrize("starts", [None, pytest.param([0, 1], marks=pytest.mark.slow)])
def test_replicas_are_the_whole_batch(starts: list[int] | None, tmp_path: Path) -> None:
    """The mean over replicas of two accumulated batches; each replica ends with the same."""
    stages = len(starts or [0])
    _in_processes(_replica, (str(tmp_path), starts), nprocs=2 * stages)
    rule, data = _whole()
    for x, y in data:
        rule.backward(x, y, scale=lambda loss: loss / len(data))
    got: dict[str, torch.Tensor] = {}
    for stage in range(stages):
        first, second = (torch.load(tmp_path / f"{2 * stage + k}.pt") for k in (0, 1))
        networks.assert_same(first, second)
        got |= first
    networks.assert_close(got, networks.grads(rule), atol=1e-13)


def test_a_stage_explains_errors(tmp_path: Path) -> None:
    """BatchNorm on one sample, tensors of `inference_mode`, inputs of another shape."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        x, y = torch.randn(2, 4), torch.tensor([0, 2])
        model = torch.nn.Sequential(
            torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3)
        )
        rule = rules.DGL(Blocks([*model], example=x), head=networks.SMALL_HEAD)
        stage = LayerParallel(rule, starts=[0])
        with torch.inference_mode():
            made_there = x.clone()
        for given, labels, message in [
            (x[:1], y[:1], "BatchNorm1d in block '1' is given a single value"),
            (made_there, y, r"made in torch.inference_mode\(\)"),
            (x[:, :3], y, r"got float32 of shape \(2, 3\), but the network was cut with"),
        ]:
            with pytest.raises(InputError, match=message):
                stage.backward(given, labels)
        stage.backward(x, y)
        stage.close()
    finally:
        dist.destroy_process_group()
