"""Training many runs: interrupted runs are continued, finished runs left alone."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def left_to_train(run: Path, options: Sequence[str]) -> list[str] | None:
    """Arguments of `layerwise train` that make or continue the run; None if it is finished."""
    if (run / "model.safetensors").exists():
        return None
    if (run / "config.yaml").exists():
        return ["--resume", str(run)]
    return [*options, "--runs", str(run.parent), "--name", run.name]


def train_variants(about: str | None, common: str, variants: Mapping[str, str], runs: str) -> None:
    """Train NAME-SEED for each variant and seed, as the command line asks.

    Args:
        about: the script's docstring.
        common: options of `layerwise train` that all variants have.
        variants: the options of each.
        runs: the folder of the runs by default.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path(runs))
    parser.add_argument("--only", nargs="+", choices=variants, default=list(variants))
    given, options = parser.parse_known_args()
    for seed in given.seeds:
        for name in given.only:
            run = given.runs / f"{name}-{seed}"
            arguments = [*shlex.split(common), *shlex.split(variants[name])]
            arguments += ["--data", given.data, "--seed", str(seed), *options]
            if (left := left_to_train(run, arguments)) is not None:
                subprocess.run([sys.executable, "-m", "layerwise", "train", *left], check=True)
