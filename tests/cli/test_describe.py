"""`layerwise describe`: its numbers are those worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import layerwise as lw
from layerwise.costs.ways import Way
from layerwise.experiment.build import criterion_and_labels


def rows(text: str) -> list[str]:
    """The table's rows, with single spaces; the total comes last."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return [line for line in lines if line[:1].isdigit() or line.startswith("all ")]


# basic_cnn on 3x32x32, a block a layer, in batches of 8.
# Field: a 5x5 convolution adds 4 jumps, a 2x2 pooling 1: 1+4+1, 6+2*4+2, 16+4*4+4.
# Parameters: 25 in out + 2 out (BatchNorm); FLOPs: 2 * 25 in out per position before the pooling.
# Kept, in 4 bytes: a layer's input, the convolution's output, and the ReLU's (in place on
# BatchNorm's); in 8 the pooling's choices, a quarter as many; BatchNorm's mean and deviation.
LAYERS = [(3, 32, 6, 2, 0.5), (128, 16, 16, 4, 1.5), (128, 8, 36, 8, 3.5)]
BASIC_CNN = [
    {
        "name": f"conv{i}",
        "shape": [128, side // 2, side // 2],
        "parameters": 25 * width * 128 + 2 * 128,
        "flops": 2 * 25 * width * 128 * side**2,
        "receptive_field": {"size": [size] * 2, "stride": [jump] * 2, "offset": [offset] * 2},
        "activation_bytes": 4 * (width + 2 * 128) * side**2
        + 8 * 128 * (side // 2) ** 2
        + 4 * 2 * 128 / 8,
    }
    for i, (width, side, size, jump, offset) in enumerate(LAYERS, 1)
] + [
    {
        "name": "classifier",
        "shape": [10],
        "parameters": 2048 * 256 + 256 + 256 * 10 + 10,
        "flops": 2 * (2048 * 256 + 256 * 10),
        "receptive_field": None,
        "activation_bytes": 4 * (2048 + 256),
    }
]


def test_basic_cnn(cli):
    result = cli("describe basic_cnn --out out/blocks.json")
    assert (result.code, result.err) == (0, "")
    found = json.loads(Path("out/blocks.json").read_text())
    headless = {"head_parameters": 0, "head_flops": 0}
    assert found["blocks"] == [block | headless for block in BASIC_CNN]
    kept = sum(block["activation_bytes"] for block in BASIC_CNN)
    # Backward: what the forward takes, for the weights; again for the inputs, but for the image.
    forward = [block["flops"] for block in BASIC_CNN]
    step = 3 * sum(forward) - forward[0]
    assert found["all"] == headless | {
        "parameters": sum(block["parameters"] for block in BASIC_CNN),
        "flops": sum(forward),
        "step_flops": step,
        "step_head_flops": 0,
        "backprop_flops": step,
        "activation_bytes": kept,  # no tensor is kept by two blocks: each pools at its end
    }
    assert found["asked"]["model"]["name"] == "basic_cnn"
    assert found["torch"]
    assert "head" not in result.out
    assert rows(result.out) == [
        "0 conv1 128x16x16 6 2 0.5 9,856 19.66 1,323",
        "1 conv2 128x8x8 16 4 1.5 409,856 209.72 459",
        "2 conv3 128x4x4 36 8 3.5 409,856 52.43 115",
        "3 classifier 10 image 527,114 1.05 9",
        "all 1,356,682 282.86 1,906",
    ]


def test_heads(cli):
    """128 x 2 x 2 -> 64 -> 10."""
    result = cli("describe basic_cnn --rule DGL --rule.head.width 64")
    assert result.code == 0, result.err
    of_head = f"{512 * 64 + 64 + 64 * 10 + 10:,} {2 * (512 * 64 + 64 * 10) / 1e6:.2f}"
    found = rows(result.out)
    assert all(row.endswith(f" {of_head}") for row in found[:3])
    assert found[3].endswith(" 527,114 1.05 9")
    assert found[4].endswith(f" {3 * (512 * 64 + 64 + 64 * 10 + 10):,} 0.20")


def test_what_two_blocks_keep_counts_once(cli):
    """ReLU keeps its output, which the next block's Linear keeps as its input."""
    assert cli("describe mlp --shape 1,4,4 --model.layers 2 --blocks all --out a.json").code == 0
    found = json.loads(Path("a.json").read_text())
    kept = [block["activation_bytes"] for block in found["blocks"]]
    width = found["blocks"][0]["shape"][0]
    assert kept == [4 * (16 + width), 4 * (width + width), 4 * width]
    assert found["all"]["activation_bytes"] == 4 * (16 + width + width)


def test_a_network_of_torchvision(cli):
    line = "describe torchvision --model.arch resnet18 --shape 3,64,48 --at layer3,layer4,avgpool"
    result = cli(f"{line} --batch_size 2 --num_classes 7")
    assert result.code == 0, result.err
    assert "resnet18, 3x64x48" in result.out
    found = rows(result.out)
    assert [" ".join(row.split()[:6]) for row in found[:3]] == [
        "0 conv1 128x8x6 99 8 0",
        "1 layer3 256x4x3 211 16 0",
        "2 layer4 512x2x2 435 32 0",
    ]
    assert found[3].startswith("3 avgpool 7 image ")


def test_the_model_as_an_option_too(cli):
    line = "describe --model vgg8c --model.width 0.0625 --blocks 2 --shape 1,8,16"
    result = cli(line)
    assert result.code == 0, result.err
    assert "vgg8c, 1x8x16" in result.out
    assert len(rows(result.out)) == 3


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "no model given; give one, as in `layerwise describe vgg11c`; there is: airbench"),
        ("basic_cn", "did you mean 'basic_cnn'"),
        ("basic_cnn mlp", "got basic_cnn and mlp; give one"),
        ("basic_cnn --model mlp", "got basic_cnn and --model mlp; give one"),
        ("mlp --blocks 99", "give blocks=4 or fewer"),
        ("mlp --blocks some", "--blocks some: give a whole number or all or null"),
        ("mlp --at nosuch", "the model has no module 'nosuch'"),
        ("mlp --blocks 2 --at fc2", "--blocks 2 contradicts --at"),
        ("mlp --shape 3", "--shape [3] --num_classes 10 --batch_size 8: give C, H and W"),
        ("mlp --num_classes 0", "--num_classes 0"),
        ("mlp --batch_size 1", "a batch of at least 2"),
        ("mlp --model.widht 3", "did you mean '--model.width'"),
        ("mlp --rule DGK", "did you mean 'DGL'"),
        ("mlp --rule.head MLP", "--rule.head: no such option"),
        ("mlp --epochs 3", "--epochs: no such option"),
        ("mlp --out there.json", "never overwritten"),
        ("torchvision --model.arch resnet1888", "did you mean 'resnet18'"),
        ("torchvision --shape 1,32,32", "3 channels"),
        ("basic_cnn --shape 3,4,4", "basic_cnn(shape=(3, 4, 4))"),
    ],
)
def test_bad_input(line, says, cli):
    Path("there.json").write_text("")
    result = cli(f"describe {line}")
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
    assert result.err.startswith("layerwise describe: ")
    assert says in result.err


def test_criteria_without_data(cli):
    """Real numbers for a loss of real numbers, classes for one of classes; FLOPs are the same. The
    step minimises the criterion that is asked for."""
    counted = {}
    for name in ("cross_entropy", "MSELoss", "torch.nn.functional.mse_loss"):
        line = f"--rule DGL --model.width 12 --criterion {name} --out {name}.json"
        assert cli(f"describe mlp {line}").code == 0
        counted[name] = json.loads(Path(f"{name}.json").read_text())["all"]["step_flops"]
    assert len({*counted.values()}) == 1
    tiny = "--model.width 4 --model.layers 2 --blocks 2 --shape 1,4,4 --batch_size 8"
    smooth = "--criterion SmoothL1Loss --criterion.beta 0.5 --rule DGL"
    assert cli(f"bench step --model mlp {tiny} {smooth} --rounds 1").code == 0
    assert cli(f"plan mlp {tiny} {smooth} --stages 2 --rounds 1").code == 0
    assert cli(f"plan mlp {tiny} {smooth} --memory 1MB").code == 0
    Path("of_own.py").write_text("def three(scores, labels, a=1):\n    return labels.missing\n")
    result = cli(f"plan mlp {tiny} --criterion of_own.three")
    assert result.code == 2
    said = "--criterion of_own.three: of scores (3, 10) and torch.int64 labels (3,) it gives "
    assert said in result.err
    assert "torch.float32 labels (3, 10)" in result.err


def test_the_criterion_that_is_asked_for(monkeypatch):
    """The loss of a network whose outputs are all zero: the mean square of the labels."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    torch.nn.init.zeros_(network[1].weight)
    torch.nn.init.zeros_(network[1].bias)
    x = torch.randn(5, 1, 2, 2)
    criterion, y = criterion_and_labels({"name": "MSELoss"}, network, x, torch.zeros(5).long())
    assert y.shape == (5, 3)
    way = Way().contender(
        network, lw.rules.DGL, x, y, blocks=1, segments=1, balance="memory", seed=0,
        criterion=criterion,
    )  # fmt: skip
    assert way.rule.backward(x, y).loss.item() == pytest.approx(y.square().mean().item())
