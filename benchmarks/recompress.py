"""Compress the images of a set once more, to see what compression costs a training.

    python benchmarks/recompress.py SOURCE TARGET [--quality 75] [--shift 5]

SOURCE is a folder in the layout of a Hugging Face image set, as is TARGET, for `--data hf:TARGET`.
JPEG changes an image little that it has compressed before with the same grid of 8x8 pixels, so the
image is shifted against the grid: it is continued by reflection, compressed, and cut out again.
The mean squared change of a value (0 to 255) goes into `results/recompressed-QUALITY.json`.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Image as ImageColumn
from datasets import load_dataset
from PIL import Image

from layerwise.runs.provenance import provenance

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--quality", type=int, default=75)
    parser.add_argument("--shift", type=int, default=5)
    given = parser.parse_args()
    found = {
        "benchmark": "recompressed",
        **provenance(),
        "quality": given.quality,
        "shift": given.shift,
        "change": copied(given.source, given.target, given.quality, given.shift),
    }
    out = RESULTS / f"recompressed-{given.quality}.json"
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(found["change"], out)


def copied(source: Path, target: Path, quality: int, shift: int) -> dict[str, float]:
    """Write the compressed copy; returns the mean squared change of a value in each split."""
    splits = load_dataset(str(source))
    features = next(iter(splits.values())).features
    column = next(name for name, kind in features.items() if isinstance(kind, ImageColumn))
    target.mkdir(parents=True)
    changes = {}

    def changed(row: dict[str, Any]) -> dict[str, Any]:
        before = np.asarray(row[column].convert("RGB"))
        after = compressed(before, quality, shift)
        change = float(np.square(after.astype(float) - before).mean())
        return {column: Image.fromarray(after), "change": change}

    for split, data in splits.items():
        data = data.map(changed)
        changes[split] = float(np.mean([row["change"] for row in data.select_columns("change")]))
        data.remove_columns("change").to_parquet(str(target / f"{split}-00000-of-00001.parquet"))
    return changes


def compressed(image: np.ndarray, quality: int, shift: int) -> np.ndarray:
    """The image (H, W, 3) after JPEG, with the grid `shift` pixels off its corner."""
    height, width, _ = image.shape
    sides = [(shift, -(side + shift) % 16) for side in (height, width)]
    file = io.BytesIO()
    padded = np.pad(image, (*sides, (0, 0)), mode="reflect")
    Image.fromarray(padded).save(file, "JPEG", quality=quality)
    after = np.asarray(Image.open(file).convert("RGB"))
    return after[shift : shift + height, shift : shift + width]


if __name__ == "__main__":
    main()
