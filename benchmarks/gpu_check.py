"""Check the library on a GPU: gradients, trainings, times, bytes, several processes.

python benchmarks/gpu_check.py                    all sections, on CUDA
python benchmarks/gpu_check.py --section rules    one of them; may be repeated
python benchmarks/gpu_check.py --device cpu --quick

No network is needed. Every section runs in a process of its own, has a limit of time, and reports
its failures as rows. All of them end within eight minutes on an H200. The exit code is 1 if a check
failed. Results go to `results/gpu-check-NAME.json`, where NAME is that of the device, and an
existing file is not overwritten; `--out FILE` names another, `--out ''` writes none.
"""

from __future__ import annotations

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts; see `trainings`

import argparse
import importlib.util
import itertools
import json
import re
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

HERE = Path(__file__).parent
SOURCE = HERE.parent / "src"
NEEDED = (
    *("torch", "torchvision", "numpy", "PIL", "greenlet", "lightning_fabric", "torchmetrics"),
    *("jsonargparse", "docstring_parser", "yaml", "rich", "safetensors"),
    *("matplotlib", "sklearn", "scipy"),
)
# The seconds that a section may take.
SECTIONS = {"rules": 200, "trainings": 110, "step": 60, "overhead": 80, "processes": 100}
TOTAL_S = 465


def main() -> int:
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(f"missing packages: {', '.join(missing)}; install what pyproject.toml lists")
        return 2
    if importlib.util.find_spec("layerwise") is None:
        sys.path.insert(0, str(SOURCE))
        os.environ["PYTHONPATH"] = os.pathsep.join(
            [str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
    options = _options()
    if options.rows is not None:
        _section(options, options.section[0], options.rows, time.monotonic() + options.limit)
        return 0
    return _all(options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu")
    parser.add_argument("--section", action="append", choices=SECTIONS, help="default: all")
    parser.add_argument("--quick", action="store_true", help="a few seconds, in one process")
    parser.add_argument("--out", help="JSON file to write; '' for none")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, default=1e9, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device != "cpu":
        import torch

        if not torch.cuda.is_available():
            parser.error(f"--device {options.device}: PyTorch sees no CUDA device here")
    return options


def _all(options: argparse.Namespace) -> int:
    """Run the sections, print the table and write the file."""
    import torch
    from gpu.rows import Row, read

    from layerwise.runs.files import write_new
    from layerwise.runs.provenance import provenance

    out = _out(options)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        for name in options.section or SECTIONS:
            limit = min(SECTIONS[name], TOTAL_S - (time.monotonic() - began))
            if options.quick:
                _section(options, name, rows, time.monotonic() + limit)
                continue
            ended = _start(options, name, rows, limit)
            if ended:
                with rows.open("a") as file:
                    file.write(json.dumps(asdict(Row(name, "the section", False, ended))) + "\n")
        found = read(rows)
    _print(found)
    failed = [row for row in found if row.ok is False]
    seconds = round(time.monotonic() - began, 1)
    print(f"{len(found)} rows, {len(failed)} failed, {seconds} s")
    if out is not None:
        content = {
            "benchmark": "gpu-check",
            **provenance(),
            "device": options.device,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "seconds": seconds,
            "rows": [asdict(row) for row in found],
        }
        write_new(out, (json.dumps(content, indent=1) + "\n").encode(), "--out")
        print(out)
    return int(bool(failed))


def _out(options: argparse.Namespace) -> Path | None:
    import torch

    if options.out is not None:
        if options.out and Path(options.out).exists():
            sys.exit(f"--out {options.out}: it exists; give another name")
        return Path(options.out) if options.out else None
    if options.device == "cpu":
        return None
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(options.device).lower())
    names = (f"gpu-check-{name}{n}.json" for n in ("", *(f"-{n}" for n in itertools.count(2))))
    return next(path for path in (HERE / "results" / each for each in names) if not path.exists())


def _start(options: argparse.Namespace, name: str, rows: Path, limit: float) -> str:
    """Run a section in a process of its own; returns why it did not end well."""
    from gpu.command import run

    print(f"{name} ...", flush=True)
    command = [sys.executable, __file__, "--device", options.device, "--section", name]
    command += ["--rows", str(rows), "--limit", str(max(0.0, limit - 15))]
    ended = run(command, max(1.0, limit))
    return ended.said if ended.code else ""


def _section(options: argparse.Namespace, name: str, path: Path, deadline: float) -> None:
    """Run a section in this process."""
    import torch
    from gpu import contract, several, speed, training
    from gpu.rows import Rows

    checks = {
        "rules": contract.check,
        "trainings": training.check,
        "step": speed.step,
        "overhead": speed.overhead,
        "processes": several.check,
    }
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = torch.device(options.device)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    rows = Rows(name, device, options.quick, path, deadline)
    try:
        checks[name](rows)
    except Exception as error:
        rows.failed("the section", error)


def _print(rows: list) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title="gpu check")
    for column in ("section", "check", "", "found", "s"):
        table.add_column(column, overflow="fold")
    words = {True: "ok", False: "FAILED", None: "skipped"}
    for row in rows:
        cells = row.section, row.check, words[row.ok], row.found, f"{row.seconds:.1f}"
        table.add_row(*map(Text, cells))
    Console(width=160).print(table)


if __name__ == "__main__":
    sys.exit(main())
