"""Weights of other libraries, from caches in their own layout on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from layerwise import models
from layerwise.cli.main import main
from layerwise.errors import InputError
from layerwise.models.weights import take
from layerwise.runs.run import Run

TRAIN = (
    "train --data digits --precision 32 --batch_size 400 --blocks 2 --pictures 0 --device cpu "
    "--rule Backprop --optimizer.lr 1e-30 --optimizer.weight_decay 0 --runs r --name a --epochs 1 "
)


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """Empty caches, and no network."""
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("layerwise.experiment.training.draw_run", lambda run: None)


def kept_on_the_hub(name: str, network: nn.Module) -> None:
    """A repository as the hub's cache holds it."""
    folder = Path("hub") / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    state = {k: v.contiguous() for k, v in network.state_dict().items()}
    safetensors.torch.save_file(
        state, folder / "snapshots" / ("0" * 40) / "model.safetensors", {"format": "pt"}
    )


def trained(options: str) -> tuple[dict[str, torch.Tensor], str]:
    assert main((TRAIN + options).split()) == 0
    path = Run.open("r/a").path
    return safetensors.torch.load_file(path / "model.safetensors"), (path / "log.txt").read_text()


def assert_taken(
    found: dict[str, torch.Tensor], network: nn.Module, but: str, among: str = ""
) -> None:
    """All parameters of `network` are found, except those that begin with `but`."""
    for name, p in network.named_parameters():
        taken = found[among + name]
        same = taken.shape == p.shape and torch.allclose(taken, p, rtol=0, atol=1e-20)
        assert same != name.startswith(but), name


@pytest.mark.slow
def test_torchvision(capsys):
    source = torchvision.models.squeezenet1_1()
    folder = Path("torch/hub/checkpoints")
    folder.mkdir(parents=True)
    torch.save(source.state_dict(), folder / "squeezenet1_1-b8a52dc0.pth")
    options = "--model torchvision --model.arch squeezenet1_1 --model.pretrained true"
    assert main((TRAIN + options).split()) == 2
    assert "its networks take 3 channels" in capsys.readouterr().err
    network = models.torchvision((3, 64, 64), 7, "squeezenet1_1", pretrained=True)
    assert_taken(network.state_dict() | {"classifier.1.weight": torch.zeros(1)}, source, "classif")
    same = models.torchvision((3, 64, 64), 1000, "squeezenet1_1", pretrained=True)
    assert_taken(same.state_dict(), source, "none")
    (folder / "alexnet-owt-7be5be79.pth").write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"torchvision\(arch='alexnet', pretrained=True\): cannot"):
        models.torchvision((3, 64, 64), 7, "alexnet", pretrained=True)


@pytest.mark.slow
def test_timm():
    """Ten classes and one channel: the head is new, and timm sums the filters of colours. The run
    is measured, compared and continued without the weights."""
    timm = pytest.importorskip("timm")
    source = timm.create_model("test_resnet")
    kept_on_the_hub("timm/test_resnet.r160_in1k", source)
    found, log = trained(
        "--data.size 32 --model timm --model.arch test_resnet --model.pretrained true"
    )
    assert "--model.pretrained: 90 of 92 tensors from timm test_resnet; as initialised: fc." in log
    first = found.pop("conv1.0.weight")
    torch.testing.assert_close(first, source.conv1[0].weight.sum(1, keepdim=True))
    assert_taken(found | {"conv1.0.weight": source.conv1[0].weight}, source, "fc")
    (Path("hub") / "models--timm--test_resnet.r160_in1k").rename("elsewhere")
    assert main(["train", "--resume", "r/a"]) == 0
    assert main(["evaluate", "r/a"]) == 0


@pytest.mark.slow
def test_a_file_of_the_hub(capsys):
    source = models.mlp((1, 8, 8), 3)
    kept_on_the_hub("me/mine", source)
    found, log = trained("--model mlp --init hf:me/mine")
    assert "from hf:me/mine; as initialised: classifier.0.weight, classifier.0.bias" in log
    assert_taken(found, source, "classifier")
    assert main((TRAIN + "--name b --init hf:me/none").split()) == 2
    assert "--init hf:me/none: there is no model.safetensors of it" in capsys.readouterr().err


@pytest.mark.slow
def test_transformers_of_images_and_text():
    """A network's folder; a checkpoint of the body alone under other names."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8,
        image_size=8, patch_size=4, num_channels=1, num_labels=3,
    )  # fmt: skip
    source = transformers.ViTForImageClassification(config)
    source.save_pretrained("vit")
    found, log = trained("--model transformers --model.arch vit --model.pretrained true --lora 2")
    assert "from transformers vit; as initialised: classifier.weight, classifier.bias\n" in log
    plain = {name.replace(".base_layer.", "."): t for name, t in found.items()}
    assert_taken(plain, source, "classifier")
    config = transformers.GPT2Config(
        n_embd=8, n_layer=2, n_head=2, vocab_size=11, n_positions=16,
    )  # fmt: skip
    body = transformers.GPT2Model(config)
    body.save_pretrained("gpt")
    network = models.transformers((16,), 11, "gpt", pretrained=True)
    assert_taken(network.state_dict(), body, "none", among="transformer.")
    other = models.transformers((16,), 5, "gpt", pretrained=True)
    assert other(torch.zeros(2, 16, dtype=torch.long)).logits.shape == (2, 16, 5)
    assert_taken(other.state_dict(), body, "wte", among="transformer.")
    with pytest.raises(InputError, match=r"transformers\(arch='none'\): cannot be loaded"):
        models.transformers((16,), 5, "none")


def test_one_line_without_a_network(monkeypatch, capsys):
    """If the hub does not answer, only its cache is asked, and nothing is printed or waited for."""
    pytest.importorskip("transformers")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main(["describe", "transformers", "--model.arch", "someone/none"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(
        "layerwise describe: transformers(arch='someone/none'): cannot be loaded"
    )
    assert "hub cannot be reached from here" in said
    assert said.endswith("connect once, or give a folder that holds them\n")
    assert main((TRAIN + "--name b --init hf:someone/none").split()) == 2
    assert capsys.readouterr().err.endswith("connect once, or give a folder that holds them\n")
    assert not constants.HF_HUB_OFFLINE


def test_names_of_a_body():
    """Weights of a body for a network around it, and the other way round."""

    class Whole(nn.Module):
        base_model_prefix = "body"

        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(2, 2), nn.Linear(2, 3)

    whole, body = Whole(), nn.Linear(2, 2)
    line = take(whole, body.state_dict(), "there")
    assert line == "2 of 4 tensors from there; as initialised: head.weight, head.bias"
    assert torch.equal(whole.body.weight, body.weight)
    with pytest.raises(InputError, match="there: no tensor fits this network; it has"):
        take(whole, {"a": torch.zeros(2)}, "there")
