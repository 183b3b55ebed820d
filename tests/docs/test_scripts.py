"""The scripts and notebooks in examples/ run as they stand there, and reach what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "digits")
# What a script needs besides the library, and the least test accuracy that it prints.
NEEDS = {
    "compare_rules": ("timm", 0.0),
    "cut_memory": ("transformers", 0.0),
    "with_accelerate": ("accelerate", 0.9),
    "with_compile": ("triton", 0.8),
    "with_lightning": ("lightning", 0.9),
    "with_loggers": ("tensorboard", 0.5),
    "with_onnx": ("onnxscript", 0.7),
    "with_timm": ("timm", 0.9),
    "with_trainer": ("accelerate", 0.8),
}
SAID = {
    "compare_rules": "report.html",
    "cut_memory": r"loss 0\.\d+ -> 0\.[0-5]",
    "early_exit": r"images that leave at each exit: \[[1-9]",
}


def run(*command: str, folder: Path) -> str:
    """What a command prints; it has to succeed."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs(name: str, tmp_path: Path) -> None:
    needed, least = NEEDS.get(name, ("layerwise", 0.8))
    if not find_spec(needed):
        pytest.skip(f"{needed} is not installed")
    script = EXAMPLES / f"{name}.py"
    several = "torchrun" in script.read_text()
    start = ["-m", "torch.distributed.run", "--nproc-per-node", "2"] if several else []
    printed = run(sys.executable, *start, str(script), folder=tmp_path)
    if least:
        found = re.findall(r"test accuracy (\d\.\d+)", printed)
        assert found
        assert min(map(float, found)) >= least
    assert re.search(SAID.get(name, ""), printed)


def test_every_script_is_short_and_shown() -> None:
    """The four first ones reach their goal in less than 30 lines, and the README names them."""
    pages = "".join(p.read_text() for p in (ROOT / "docs/frameworks").glob("*.md"))
    readme = (ROOT / "README.md").read_text()
    for name in SCRIPTS:
        lines = (EXAMPLES / f"{name}.py").read_text().count("\n")
        if name.startswith("with_"):
            assert lines < 40
            assert f'--8<-- "examples/{name}.py"' in pages
        else:
            assert lines < 30
            assert f"](examples/{name}.py)" in readme


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.ipynb")))
def test_a_notebook_runs(name: str, tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)

    def pictures() -> list[bool]:
        outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
        return ["image/png" in output.get("data", {}) for output in outputs]

    shown = pictures()
    assert sum(shown) >= 2
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": tmp_path}}).execute()
    assert sum(pictures()) == sum(shown)
