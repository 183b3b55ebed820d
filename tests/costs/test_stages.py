"""Plans: which blocks make a stage, and what is expected of it."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path

import networks
import pytest
import torch
from networks import assert_same, grads

from layerwise import rules
from layerwise.cli import main
from layerwise.costs.pipelines import DELAYED, order_of, pipelined, simulate
from layerwise.costs.stages import Plan, Stage, block_seconds, stage_starts
from layerwise.errors import InputError


def test_the_slowest_stage_is_as_fast_as_it_can_be() -> None:
    seconds = [4.0, 1.0, 1.0, 2.0, 3.0]
    assert stage_starts(seconds, 1) == [0]
    assert stage_starts(seconds, 2) == [0, 2]  # 5 and 6; [0, 1] would be 4 and 7
    assert stage_starts(seconds, 3) == [0, 1, 4]  # 4, 4, 3
    assert stage_starts(seconds, 5) == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match="--stages 6: the network is cut into 5 blocks"):
        stage_starts(seconds, 6)


def _plan(*seconds: float, sends: int = 0) -> Plan:
    stages = [Stage(range(i, i + 1), s, 1, 1, sends) for i, s in enumerate(seconds)]
    return Plan(tuple(stages), batch_size=10)


def test_expectations() -> None:
    plan = _plan(2.0, 5.0, 3.0)
    assert plan.serial_seconds == 10
    assert plan.images_per_s == 2  # 10 images every 5 s
    assert plan.speedup == 2


def test_the_simulation_by_hand() -> None:
    """Two stages of 1 s: the second begins when the first is through, so 3 batches take 4 s.
    A link of 2 bytes/s adds 0.5 s to the first message, none after. A second stage of 3 s
    decides: 1 + 3 * 3 s."""
    assert _plan(1.0, 1.0).seconds_for(3) == 4
    assert _plan(1.0, 1.0, sends=1).seconds_for(3, bytes_per_s=2) == 4.5
    assert _plan(1.0, 3.0).seconds_for(3) == 10
    assert _plan(3.0, 1.0).seconds_for(3) == 10
    assert _plan(2.0).seconds_for(3) == 6


def test_a_slow_stage_holds_up_those_before_it() -> None:
    """With depth 1 there is room for 3 batches between two stages: the first stage's batch 3 waits
    for the second to be through with batch 0, at 1 + 10 s, although it was free at 3 s; the end is
    the slow stage's all the same."""
    plan = _plan(1.0, 10.0)
    assert plan.seconds_for(20, depth=1) == 1 + 20 * 10


def _idle(schedule: str, stages: int, microbatches: int) -> float:
    return pipelined(schedule, [1.0] * 2 * stages, [0.0] * 2 * stages, stages, microbatches).idle


def test_pipelines_by_their_formulas() -> None:
    """4 equal stages, 8 micro-batches, F = 1, B = 2. GPipe and 1F1B wait for 3 of 11; interleaved
    1F1B with two stages for half of that, 1.5 of 9.5; the V-shaped ones, which divide B, for half a
    unit of 8.5; delayed gradients not at all."""
    assert _idle("GPipe", 4, 8) == pytest.approx(3 / 11)
    assert _idle("1F1B", 4, 8) == pytest.approx(3 / 11)
    assert _idle("interleaved 1F1B", 4, 8) == pytest.approx(1.5 / 9.5)
    for stages in (2, 4, 7):
        assert _idle(DELAYED, stages, 2 * stages) == pytest.approx(0.0, abs=1e-9)
    for name in ("ZBV zero bubble", "DualPipeV"):
        assert _idle(name, 4, 8) == pytest.approx(1 / 17)


def test_the_simulation_of_operations_by_hand() -> None:
    """Two stages of 3 s, one micro-batch, messages of 1 s: F0 ends at 1, F1 at 1 + 1 + 1, B1 at 5,
    B0 at 5 + 1 + 2. With two micro-batches the second F0 ends at 2; its F1, behind B1 of the first
    in 1F1B, at 6."""
    one = [[("F", 0, 0), ("B", 0, 0)], [("F", 1, 0), ("B", 1, 0)]]
    ended = simulate(one, [3.0, 3.0], [1.0, 0.0])
    assert ended == pytest.approx({("F", 0, 0): 1, ("F", 1, 0): 3, ("B", 1, 0): 5, ("B", 0, 0): 8})
    ended = simulate(order_of("1F1B", 2, 2), [3.0, 3.0], [1.0, 0.0])
    assert ended["F", 0, 1] == pytest.approx(2)
    assert ended["F", 1, 1] == pytest.approx(6)
    with pytest.raises(ValueError, match="wait for each other"):
        simulate([[("B", 0, 0), ("F", 0, 0)]], [1.0], [0.0])


@pytest.mark.parametrize("make", [rules.DGL, rules.DNI])
def test_measuring_leaves_the_rule_alone(make: type) -> None:
    case = networks.cnn(dropout=0.2)
    rule = make(case.blocks)
    rule.backward(case.x, case.y)
    state, before = copy.deepcopy(rule.state_dict()), grads(rule)
    rng = torch.get_rng_state()
    seconds = block_seconds(rule, case.x, case.y, rounds=1)
    assert len(seconds) == len(rule.blocks)
    assert all(s > 0 for s in seconds)
    assert torch.equal(torch.get_rng_state(), rng)
    assert_same(dict(rule.state_dict()), state)
    assert_same(grads(rule), before)


@pytest.mark.parametrize(
    ("make", "ticks"), [(rules.DGL, [2, 2, 2, 1]), (rules.Backprop, [1, 1, 1, 1])]
)
def test_blocks_are_measured_by_the_clock_that_is_given(make: type, ticks: list[int]) -> None:
    """A local block is read twice: after its own step, and after what it learns from the next."""
    case = networks.cnn()
    clock = itertools.count().__next__
    assert block_seconds(make(case.blocks), case.x, case.y, rounds=1, clock=clock) == ticks


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, picture = tmp_path / "plan.json", tmp_path / "new" / "plan.png"
    options = f"--model.channels 4 --batch_size 4 --rounds 1 --stages 2 --out {out}"
    options += f" --picture {picture}"
    assert main(f"plan basic_cnn --at conv2,conv3 {options}".split()) == 0
    assert "Infinity" not in out.read_text()
    assert picture.read_bytes()[:4] == b"\x89PNG"
    plan = json.loads(out.read_text())
    assert [i for stage in plan["stages"] for i in stage["blocks"]] == [0, 1, 2]
    first, second = plan["stages"]
    side = 16 if len(first["blocks"]) == 1 else 8
    assert first["sends_bytes"] == 4 * 4 * 4 * side * side  # float32, 4 images, 4 channels
    assert second["sends_bytes"] == 0
    times = [stage["seconds"] for stage in plan["stages"]]
    assert plan["speedup"] == pytest.approx(sum(times) / max(times))
    said = capsys.readouterr().out
    assert "2 stages" in said
    assert "two stages in each process need 4 blocks, and there are 3" in " ".join(said.split())
    halved = {name for name, found in plan["pipelines"]["2"].items() if found["halved"]}
    assert halved == {"interleaved 1F1B", "ZBV zero bubble", "DualPipeV"}
    assert plan["pipelines"]["2"]["1F1B"]["idle"] >= 1 / 5 - 1e-9  # 1 / (4 + 1) in equal stages


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("plan", "no model given; give one, as in `layerwise plan vgg11c --stages 2`"),
        ("plan basic_cnn --stages 9 --blocks 2", "cut into 2 blocks; give at most 2 stages"),
        ("plan basic_cnn --rule Backprop", "Backprop needs backward information"),
        ("plan basic_cnn --stages 0", "--stages 0: give at least 1"),
        ("plan basic_cnn --microbatches 9 --batch_size 8", "a batch has 8 samples; give at most"),
        ("plan basic_cnn --link inf", "--link inf: give a number or null"),
        ("plan basic_cnn --link 0", "--link 0.0: give a rate above 0, in Gb/s, or null"),
    ],
)
def test_bad_input(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments.split()) == 2
    assert message in capsys.readouterr().err
