"""The command that a result names."""

import sys
from pathlib import Path

import pytest

from layerwise.runs.provenance import provenance


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        (["benchmarks/step.py", "gpt"], "python benchmarks/step.py gpt"),
        (["step.py", "gpt"], "python benchmarks/step.py gpt"),
        ([""], "''"),
        (["/usr/bin/layerwise", "train", "--out=/a/b"], "layerwise train --out=b"),
        (["/a/layerwise/__main__.py", "--data", "hf:/a/c"], "layerwise --data hf:c"),
    ],
)
def test_it_is_as_typed_without_folders(
    typed: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script is named with its folder, wherever it was started."""
    inside = tmp_path / "benchmarks"
    inside.mkdir()
    monkeypatch.chdir(tmp_path if "/" in typed[0] else inside)
    monkeypatch.setattr(sys, "argv", typed)
    assert provenance()["command"] == named
