"""What most users do, once each: the tests that run on other versions of Python and the libraries.

Several of a library's functions are used in one place only. These tests reach most such places, in
a few minutes.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.nn import functional as F

import layerwise as lw
from layerwise.analysis.exits import Exit
from layerwise.cli import main

# The warnings come from other libraries.
pytestmark = [pytest.mark.smoke, pytest.mark.filterwarnings("ignore")]

TINY = "--model mlp --epochs 1 --batch_size 200 --device cpu"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all command lines run."""
    return tmp_path_factory.mktemp("smoke")


@pytest.fixture
def cli(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(folder)

    def run(line: str) -> str:
        code = main(line.split())
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    return run


def bert() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_labels=5,
    )
    tokens = torch.randint(3, 99, (4, 12))
    tokens[1, 8:] = 0
    batch = {"input_ids": tokens, "attention_mask": (tokens > 0).long()}
    return transformers.BertForSequenceClassification(config), batch


def of_timm() -> tuple[nn.Module, torch.Tensor]:
    timm = pytest.importorskip("timm")
    network = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=5)
    return network, torch.randn(4, 3, 32, 32)


NETWORKS = {
    "resnet20": lambda: (lw.models.resnet20(num_classes=5), torch.randn(4, 3, 32, 32)),
    "vit": lambda: (lw.models.vit(num_classes=5, layers=4, width=32), torch.randn(4, 3, 32, 32)),
    "torchvision": lambda: (
        torchvision.models.mobilenet_v3_small(num_classes=5),
        torch.randn(4, 3, 32, 32),
    ),
    "bert": bert,
    "timm": of_timm,
}


@pytest.mark.parametrize("network", NETWORKS)
def test_steps(network: str) -> None:
    """Backpropagation is autograd's, bit for bit; DGL and DNI give every parameter a gradient."""
    model, inputs = NETWORKS[network]()
    labels = torch.randint(0, 5, (4,))
    blocks = lw.cut(model, blocks=3, example=inputs)
    assert len(blocks) == 3
    plain = copy.deepcopy(model)

    torch.manual_seed(1)
    lw.rules.Backprop(blocks).backward(inputs, labels)
    torch.manual_seed(1)
    output = plain(**inputs) if isinstance(inputs, dict) else plain(inputs)
    F.cross_entropy(getattr(output, "logits", output), labels).backward()
    for own, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert own.grad is not None
        assert torch.equal(own.grad, other.grad)

    for make in (lw.rules.DGL, lw.rules.DNI):
        rule = make(blocks)
        optimizer = torch.optim.SGD(rule.parameters(), lr=0.01)
        rule.zero_grad()
        report = rule.backward(inputs, labels)
        optimizer.step()
        assert report.loss.isfinite()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in rule.parameters())


def test_train_compare_evaluate_analyze(cli, folder: Path) -> None:
    cli(f"train {TINY} --rule DGL --name dgl --ema 0.9")
    cli(f"train {TINY} --rule Backprop --name backprop --precision bf16")
    cli("compare experiments/dgl experiments/backprop --out compared")
    cli("evaluate experiments/dgl")
    cli("analyze experiments/dgl experiments/backprop")
    run = folder / "experiments" / "dgl"
    assert list(run.rglob("*.png"))
    assert list((folder / "compared").rglob("*.png"))
    assert (run / "model.safetensors").exists()


@pytest.mark.gloo
def test_stages(folder: Path) -> None:
    """Two processes give the same weights as one."""
    for name, options in (("one", "--runtime serial"), ("two", "--stages 2")):
        line = f"train {TINY} --blocks 2 --rule DGL --pictures 0 --name {name} {options}"
        subprocess.run(
            [sys.executable, "-m", "layerwise", *line.split()],
            check=True,
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=300,
        )
    one, two = (folder / "experiments" / n / "model.safetensors" for n in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_image_folder(cli, folder: Path) -> None:
    """Pictures are decoded, augmented and drawn."""
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        place = folder / "pictures" / name
        place.mkdir(parents=True)
        for i in range(20):
            picture = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
            picture.save(place / f"{i}.{('png', 'jpg')[i % 2]}")
    cli(
        "train --data pictures --model basic_cnn --epochs 1 --batch_size 8 --device cpu "
        "--rule Greedy --rule.objectives Reconstruct --name pictures"
    )


def test_measure(cli, folder: Path) -> None:
    cli("bench step --model resnet20 --blocks 3 --batch_size 4 --device cpu --out step.json")
    assert json.loads((folder / "step.json").read_text())
    assert "resnet20" in cli("describe resnet20 --blocks 3")


def test_help(cli) -> None:
    with pytest.raises(SystemExit):
        cli("train --rule DGL --help")
    assert "DGL" in cli("list")


def test_export() -> None:
    images = torch.randn(4, 3, 32, 32)
    rule = lw.rules.DGL(lw.cut(lw.models.resnet20(), blocks=3, example=images)).eval()
    program = torch.export.export(Exit(rule, 1).eval(), (images,))
    torch.testing.assert_close(program.module()(images), rule.exits(images)[1])
