"""`layerwise train`: the pictures of a run."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from layerwise import data
from layerwise.report.pictures import GAP, TITLE
from layerwise.runs.run import Run

CNN = (
    "train --model basic_cnn --model.channels 4 --model.kernel_size 3 --model.hidden 8 "
    "--batch_size 200 --device cpu --runs runs"
)
GREEDY = "--rule Greedy --rule.objectives Classify+Reconstruct"


def shown(path: Path) -> np.ndarray:
    """The upper row of eight digits, one number a pixel, (8, 8, 8)."""
    picture = np.asarray(Image.open(path))[TITLE + GAP :, :, 0]
    cells = [picture[:80, GAP + b * (80 + GAP) :][:, :80] for b in range(8)]
    return np.stack(cells)[:, ::10, ::10]


@pytest.mark.parametrize(
    ("normalize", "validation"),
    [("symmetric", 0.1), ("standard", 0.1), ("none", 0.1), ("standard", 0)],
)
def test_the_images_are_those_of_the_set(normalize, validation, cli, no_pictures):
    """Eight of the validation split (of the training split where there is none), from end to end,
    as they were before normalisation."""
    line = f"{CNN} {GREEDY} --augment.normalize {normalize} --augment.flip true --epochs 2"
    result = cli(f"{line} --data.validation {validation} --name run")
    assert result.code == 0, result.err
    splits = data.load("digits", validation=validation)
    part = splits.validation or splits.train
    images = part.images[torch.linspace(0, len(part) - 1, 8).long()][..., 0].numpy()
    folder = Path("runs/run/pictures")
    names = [f"block-{i}" for i in range(3)] + ["filters"]
    assert {p.name for p in folder.iterdir()} == {
        f"epoch-{epoch:03d}-{name}.png" for epoch in (1, 2) for name in names
    }
    for epoch in (1, 2):
        assert np.array_equal(shown(folder / f"epoch-{epoch:03d}-block-0.png"), images)


def test_none(cli, no_pictures):
    assert cli(f"{CNN} {GREEDY} --epochs 1 --pictures 0 --name none").code == 0
    assert not Path("runs/none/pictures").exists()
    assert cli(f"{CNN} --epochs 1 --name filters").code == 0
    assert [p.name for p in Path("runs/filters/pictures").iterdir()] == ["epoch-001-filters.png"]


def test_pictures_change_no_bit(cli, no_pictures):
    for every in (0, 1):
        assert cli(f"{CNN} {GREEDY} --epochs 2 --pictures {every} --name run-{every}").code == 0
    a, b = (Path(f"runs/run-{every}/model.safetensors").read_bytes() for every in (0, 1))
    assert a == b


def test_a_full_disk(cli, no_pictures, monkeypatch):
    """One line; the epoch is kept, and the run goes on."""
    replace = os.replace

    def refuse(source, target):
        if "pictures" in str(target):
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refuse)
        result = cli(f"{CNN} {GREEDY} --epochs 2 --name full")
    assert result.code == 2
    assert "No space left on device" in result.err.splitlines()[-1]
    assert Run(Path("runs/full")).load("last")["epoch"] == 1
    assert not list(Path("runs/full").rglob(".*"))
    assert cli("train --resume runs/full").code == 0
