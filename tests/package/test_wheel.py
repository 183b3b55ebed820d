"""The wheel holds all that the library needs beside its dependencies."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_wheel_trains_from_a_folder_of_its_own(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT]
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("layerwise-*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    assert (site / "layerwise" / "py.typed").exists()
    assert list(site.glob("*.dist-info/licenses/LICENSE"))

    command = [sys.executable, "-m", "layerwise", "train", "--recipe", "demo-dgl", "--epochs", "1"]
    where = {**os.environ, "PYTHONPATH": str(site)}
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, env=where)
    log = (tmp_path / "experiments" / "digits-basic_cnn-dgl-1" / "log.txt").read_text()
    assert "epoch 1/1" in log
    found = [sys.executable, "-c", "import layerwise; print(layerwise.__file__)"]
    used = subprocess.run(
        found, check=True, capture_output=True, text=True, cwd=tmp_path, env=where
    )
    assert Path(used.stdout.strip()).is_relative_to(site)
