"""Training as a function is training on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from layerwise.cli import main
from layerwise.errors import Interrupted
from layerwise.experiment import resume, train, training
from layerwise.experiment.observers import PicturesRecorder
from layerwise.trainer import Progress, Trainer

TINY = {
    "model": {"name": "mlp", "layers": 2, "width": 12, "dropout": 0.1},
    "blocks": 2,
    "rule": {"head": {"width": 8}},
    "epochs": 2,
    "batch_size": 200,
    "device": "cpu",
    "save_every": 2,
}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "draw_run", lambda run: None)  # longer than training


def tensors(state, path=""):
    """Every tensor of a checkpoint, by its path."""
    if isinstance(state, torch.Tensor):
        return {path: state}
    inner = state if isinstance(state, dict) else {}
    return {
        k: t for key, value in inner.items() for k, t in tensors(value, f"{path}/{key}").items()
    }


def assert_same_bits(a, b):
    for name in ("last", "best"):
        x, y = tensors(a.load(name)), tensors(b.load(name))
        assert x.keys() == y.keys()
        assert len(x) > 10
        assert all(torch.equal(x[key], y[key]) for key in x)
    assert (a.path / "model.safetensors").read_bytes() == (
        b.path / "model.safetensors"
    ).read_bytes()


def test_the_same_bits_as_on_the_command_line(capsys):
    run = train(TINY)
    assert capsys.readouterr() == ("", "")
    assert run.path == Path("experiments/digits-mlp-dgl-1")
    assert [row["epoch"] for row in run.metrics()] == [1, 2]
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY))
    assert main(["train", "--config", "tiny.yaml", "--name", "other"]) == 0
    other = type(run).open("experiments/other")
    assert_same_bits(run, other)
    config = (run.path / "config.yaml").read_text()
    assert config == (other.path / "config.yaml").read_text()
    again = train(yaml.safe_load(config), runs="elsewhere", name="again")
    assert again.path == Path("elsewhere/again")
    assert_same_bits(run, again)


def test_a_config_that_cannot_be_used_makes_no_folder():
    from layerwise import InputError

    for config, says in (
        (TINY | {"epocs": 3}, "did you mean 'epochs'"),
        (TINY | {"epochs": "3"}, "give a whole number"),
        (TINY | {"epochs": 0}, "give at least 1"),
        (TINY | {"device": "quantum"}, "no such device"),
    ):
        with pytest.raises(InputError, match=says):
            train(config)
    assert not Path("experiments").exists()


class Said(Progress):
    def __init__(self):
        self.entered, self.lines, self.flops, self.epochs = 0, [], 0, []

    def __enter__(self):
        self.entered += 1
        return self

    def costs(self, costs):
        self.flops = costs.flops

    def start(self, epoch, epochs, images, done):
        self.epochs.append((epoch, done))

    def say(self, line):
        self.lines.append(line)


def test_a_display():
    said = Said()
    train(TINY, name="a", progress=said)
    assert said.entered == 1
    assert said.flops > 0
    assert said.epochs == [(1, 0), (2, 0)]
    assert said.lines[0] == "experiments/a: digits, cpu"
    assert said.lines[-1] == "done: experiments/a"
    assert len(said.lines) == 4


def test_resume(monkeypatch):
    straight = train(TINY, name="straight")
    finish = Trainer._finish_step

    def finish_step(self):
        finish(self)
        self.stop.asked = self.position.step == 4

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_finish_step", finish_step)
        with pytest.raises(Interrupted, match="layerwise train --resume experiments/stopped"):
            train(TINY, name="stopped")
    said = Said()
    stopped = resume("experiments/stopped", progress=said)
    assert said.epochs == [(1, 800), (2, 0)]
    assert_same_bits(straight, stopped)
    kept = stopped.metrics()
    assert resume(stopped.path).metrics() == kept  # it was complete


def test_resume_says_what_it_cannot_use():
    from layerwise import InputError

    with pytest.raises(InputError, match="run missing: is not a folder"):
        resume("missing")
    run = train(TINY | {"epochs": 1})
    with pytest.raises(InputError, match="--stages 'two': give a whole number or null"):
        resume(run.path, stages="two")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no such device"):
        resume(run.path, device="quantum")


@pytest.mark.parametrize(
    ("every", "epochs", "seen"),
    [(1, 3, [1, 2, 3]), (2, 5, [1, 2, 4, 5]), (5, 1, [1]), (9, 3, [1, 3])],
)
def test_when_pictures_are_drawn(every, epochs, seen):
    found = []
    recorder = PicturesRecorder(lambda epoch, rule: found.append(epoch), every, epochs)
    for epoch in range(1, epochs + 1):
        recorder.after_epoch(epoch, None, {})
    assert found == seen
