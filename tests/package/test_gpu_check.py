"""`benchmarks/gpu_check.py` works, on the CPU."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_quick_check_of_the_cpu(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    done = run("--quick", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(out.read_text())["rows"]
    sections = ["rules", "trainings", "step", "overhead", "processes"]
    assert list(dict.fromkeys(row["section"] for row in rows)) == sections
    assert {row["ok"] for row in rows} == {True, None}
    resumed = next(row for row in rows if row["check"] == "DGL: resume")
    assert "the same bits" in resumed["found"]
    skipped = {row["check"] for row in rows if row["found"] == "needs CUDA"}
    assert "DGL as a CUDA graph" in skipped
    assert "skipped" in done.stdout


def test_what_is_there_is_not_overwritten(monkeypatch, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    out.write_text("another machine's")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # the script sets it
    monkeypatch.syspath_prepend(SCRIPT.parent)
    command = [str(SCRIPT), "--device", "cpu", "--quick", "--section", "processes", "--out"]
    monkeypatch.setattr(sys, "argv", [*command, str(out)])
    with pytest.raises(SystemExit, match="it exists"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert out.read_text() == "another machine's"


def test_a_section_that_fails_is_a_row(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import torch
    from gpu.contract import FLOORS, Gradients
    from gpu.rows import Rows, read

    path = tmp_path / "rows.jsonl"
    rows = Rows("rules", torch.device("cpu"), True, path, 0.0)
    rows.failed("a rule", RuntimeError("no\nkernel"))
    assert rows.late()
    (row,) = read(path)
    assert (row.ok, row.found) == (False, "RuntimeError: no kernel")
    # The measure sees a block whose gradient is wrong, however small it is next to the others.
    right = [torch.ones(3).double(), 1e-6 * torch.ones(3).double()]
    wrong = Gradients([right[0], torch.zeros(3).double()])
    assert wrong.error(Gradients(right)) == 1.0 > FLOORS["float32"]
