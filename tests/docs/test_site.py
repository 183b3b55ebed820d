"""The documentation's site builds without a warning; a page of each kind is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Parameters" in (tmp_path / "api/layerwise.rules/index.html").read_text()
    assert (tmp_path / "rules/dgl/index.html").exists()
    assert "configure_optimizers" in (tmp_path / "frameworks/lightning/index.html").read_text()
    assert "<img" in (tmp_path / "examples/compare-rules/index.html").read_text()
    assert 'href="guide/"' in (tmp_path / "index.html").read_text()
