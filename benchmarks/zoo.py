"""Every network of the zoo (tests/zoo.py) cut, evaluated and trained: `results/zoo.json`.

    python benchmarks/zoo.py                          all of them
    python benchmarks/zoo.py --resume                 only networks that the file does not have
    python benchmarks/zoo.py --library timm           one library, into the file
    python benchmarks/zoo.py --only timm/vgg11_bn     these networks, into the file

The checks are those of tests/zoo_checks.py: the blocks give the model's output, backpropagation
through them gives the gradients of a plain training loop, DGL reaches every parameter, the first
block learns by itself, and cut leaves the model unchanged. Networks run one after another in a
process of their own, so a network that crashes or hangs becomes a line in the table and stops
nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
OUT = RESULTS / "zoo.json"
# This file has the same name as the module that it reads.
sys.path.insert(0, str(ROOT / "tests"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="LIBRARY/NAME")
    parser.add_argument("--library", choices=["torchvision", "timm", "transformers"])
    parser.add_argument("--resume", action="store_true", help="skip what the file has")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for a network")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work()
        return

    from pages.networks import written
    from zoo import NETWORKS

    if unknown := set(given.only) - set(NETWORKS):
        sys.exit(f"no such network: {', '.join(sorted(unknown))}; tests/zoo.py lists them")
    wanted = [
        key
        for key, network in NETWORKS.items()
        if (not given.only or key in given.only)
        and given.library in (None, network.library)
        and all(map(importlib.util.find_spec, network.needs))
    ]
    part = bool(given.only or given.library or given.resume)
    about = file_header()
    rows = _rows(about) if part else {}
    if given.resume:
        wanted = [key for key in wanted if key not in rows]
    for i, (key, row) in enumerate(found(wanted, given.timeout), 1):
        rows[key] = row
        print(f"{i}/{len(wanted)} {key}: {_line(row)}", flush=True)
        # In the order of the zoo, whatever order they finished in.
        about["rows"] = [rows[key] for key in NETWORKS if key in rows]
        OUT.write_text(json.dumps(about, indent=1) + "\n")
    if rows:
        print(written(about))


def file_header() -> dict[str, Any]:
    """Command, versions and machine."""
    from layerwise.runs.provenance import provenance

    libraries = {
        name: metadata.version(name)
        for name in ("timm", "transformers", "peft")
        if importlib.util.find_spec(name)
    }
    return {"benchmark": "zoo", **provenance(), **libraries, "rows": []}


def _rows(about: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The file's rows, to which new ones are added; the command stays that of the first."""
    if not OUT.exists():
        return {}
    before = json.loads(OUT.read_text())
    same = ("layerwise", "torch", "torchvision", "timm", "transformers", "cpu")
    if other := [name for name in same if before.get(name) != about.get(name)]:
        sys.exit(
            f"{OUT.name} was made with another {', '.join(other)}; measure all networks again: "
            "python benchmarks/zoo.py"
        )
    about["command"] = before["command"]
    about["rows"] = before["rows"]
    return {f"{row['library']}/{row['name']}": row for row in before["rows"]}


def found(wanted: list[str], timeout_s: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each network's finding, from a process that is started again if it is lost."""
    worker: Worker | None = None
    for key in wanted:
        worker = worker or Worker()
        row = worker.ask(key, timeout_s)
        if row is None:
            reason = worker.end(timeout_s)
            worker = None
            row = _lost(key, reason)
        yield key, row
    if worker is not None:
        worker.process.communicate()  # it ends when its input ends


class Worker:
    """A process that checks the networks that it is asked for."""

    def __init__(self) -> None:
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=one_thread,
        )

    def ask(self, key: str, timeout_s: float) -> dict[str, Any] | None:
        """The finding; None if the process died or took too long."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(key + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return None
        with selectors.DefaultSelector() as ready:
            ready.register(self.process.stdout, selectors.EVENT_READ)
            if not ready.select(timeout_s):
                return None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def end(self, timeout_s: float = 0.0) -> str:
        """End the process; returns why it had to end."""
        try:
            reason = f"the process ended with {self.process.wait(1)}"
        except subprocess.TimeoutExpired:
            self.process.kill()
            reason = f"took longer than {timeout_s:g} s"
        self.process.communicate()
        return reason


def _lost(key: str, reason: str) -> dict[str, Any]:
    from zoo import NETWORKS
    from zoo_checks import Finding

    network = NETWORKS[key]
    row = Finding(network.name, network.library, network.kind, network.stands_for)
    row.errors["process"] = reason
    return row.as_dict()


def work() -> None:
    """Read names and write findings; what models print goes to stderr."""
    import warnings

    import torch

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if importlib.util.find_spec("transformers"):
        import transformers

        transformers.logging.set_verbosity_error()
    from zoo import NETWORKS
    from zoo_checks import check

    for key in map(str.strip, sys.stdin):
        answers.write(json.dumps(check(NETWORKS[key]).as_dict()) + "\n")
        answers.flush()


def _line(row: dict[str, Any]) -> str:
    from zoo_checks import Finding

    problems = Finding(**row).problems()
    told = [f"{row['blocks']} blocks" if row["blocks"] else "not cut"]
    told += problems or ["equal" if row["blocks"] else ""]
    told += [f"{step}: {reason}" for step, reason in row["refusals"].items()]
    return "; ".join(filter(None, told)) + f" ({row['seconds']:.1f} s)"


if __name__ == "__main__":
    main()
