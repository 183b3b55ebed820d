"""Images that are compressed once more (`benchmarks/recompress.py`)."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, load_dataset
from datasets import Image as ImageColumn
from PIL import Image


@pytest.fixture
def recompress(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import recompress

    return recompress


def as_jpeg(image: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=75)
    return np.asarray(Image.open(file).convert("RGB"))


def test_it_changes_what_jpeg_has_compressed_before(recompress) -> None:
    """On its own grid JPEG changes its own image by less than a tenth as much as on a shifted one.
    A grey image stays."""
    noise = np.random.default_rng(0).integers(96, 160, (32, 32, 3), np.uint8)
    once = as_jpeg(noise).astype(float)
    on_the_grid, shifted = (
        np.square(recompress.compressed(once.astype(np.uint8), 75, shift) - once).mean()
        for shift in (0, 5)
    )
    assert on_the_grid < shifted / 10
    grey = np.full((20, 28, 3), 128, np.uint8)
    assert np.array_equal(recompress.compressed(grey, 75, 5), grey)


def test_the_copy(recompress, tmp_path: Path) -> None:
    """Same labels, the compressed images in the same order, and the mean of the changes."""
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(3)]
    rows = {"img": [Image.fromarray(image) for image in images], "label": [2, 0, 1]}
    features = Features({"img": ImageColumn(), "label": ClassLabel(names=["a", "b", "c"])})
    (tmp_path / "source").mkdir()
    Dataset.from_dict(rows, features).to_parquet(tmp_path / "source" / "test.parquet")
    change = recompress.copied(tmp_path / "source", tmp_path / "target", 50, 5)
    copy = load_dataset(str(tmp_path / "target"))["test"]
    wanted = [recompress.compressed(image, 50, 5) for image in images]
    assert copy["label"] == [2, 0, 1]
    assert copy.features["label"].names == ["a", "b", "c"]
    for row, image in zip(copy, wanted, strict=True):
        assert np.array_equal(np.asarray(row["img"]), image)
    square = [
        np.square(w.astype(float) - image).mean() for w, image in zip(wanted, images, strict=True)
    ]
    assert change == {"test": pytest.approx(np.mean(square))}
