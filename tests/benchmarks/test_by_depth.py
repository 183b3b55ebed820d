"""The sub-network that `benchmarks/by_depth.py exits` chooses, and its tables."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def by_depth(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import by_depth

    return by_depth


def test_the_validation_split_chooses(by_depth, tmp_path: Path) -> None:
    """Block 1 is within a point of the best on validation; on test it is not, and is reported."""
    for split, accuracies in (("validation", [0.5, 0.795, 0.8]), ("test", [0.5, 0.7, 0.9])):
        exits = [{"accuracy": a, "flops": 10 * (k + 1)} for k, a in enumerate(accuracies)]
        (tmp_path / f"evaluation-{split}-last.json").write_text(
            json.dumps({"exits": [None, *exits]})
        )
    found = by_depth.exits_of(SimpleNamespace(path=tmp_path))
    assert found["chosen"] == 2
    assert found["exits"][2] == {"accuracy": 0.7, "flops": 20}
    rows = [{"rule": "dgl", "seed": 0, **found}]
    (axes,) = by_depth.draw_exits(rows).axes
    line, ring = axes.get_lines()
    assert line.get_xydata().tolist() == [[1e-5, 50], [2e-5, 70], [3e-5, 90]]
    assert ring.get_xydata().tolist() == [[2e-5, 70]]


def test_views_replace_the_crop(by_depth) -> None:
    """Runs of a contrastive objective have its views instead of flips and crops."""
    for network in ("vgg", "basic"):
        options = by_depth.options_of(network, "simclr")
        assert "--views 2" in options
        assert "--augment.crop" not in options
    assert "--augment.crop 2" in by_depth.options_of("vgg", "dgl")
    assert "--augment.crop 4" in by_depth.options_of("basic", "dgl")
