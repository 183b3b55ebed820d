"""Does it matter where blocks live? Accuracy of the same training in serial, in step, with replay.

    python benchmarks/runtimes.py --data NAME [--seeds 0 1 2] [--runs FOLDER] [OPTIONS]

BasicCNN with 32 channels in three blocks, flips and crops, DGL. OPTIONS go to every `layerwise
train`. An interrupted run is continued, a finished run is left alone; `python
benchmarks/accuracy.py runtimes FOLDER/*` keeps the measurements. At the end it compares the weights
of the serial run with those of the stages in step: they are equal bit for bit if all processes
compute with the same number of threads.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from runs import left_to_train

COMMON = (
    "--model basic_cnn --model.channels 32 --at [conv2,conv3] --rule DGL --rule.head MLP "
    "--rule.head.width 256 --augment.flip true --augment.crop 4 --optimizer SGD "
    "--optimizer.lr 0.05 --schedule OneCycle --epochs 4 --batch_size 64 --channels_last true "
    "--pictures 0"
)
VARIANTS = {
    "serial": "--runtime serial",
    "in-step": "--stages 2",
    "replay": "--stages 2 --replay 8",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("experiments/runtimes"))
    given, options = parser.parse_known_args()
    for seed in given.seeds:
        for name, variant in VARIANTS.items():
            run = given.runs / f"{name}-{seed}"
            arguments = [*shlex.split(COMMON), *shlex.split(variant)]
            arguments += ["--data", given.data, "--seed", str(seed), *options]
            if (left := left_to_train(run, arguments)) is not None:
                subprocess.run([sys.executable, "-m", "layerwise", "train", *left], check=True)
        serial, in_step = (
            (given.runs / f"{name}-{seed}" / "model.safetensors").read_bytes()
            for name in ("serial", "in-step")
        )
        print(f"seed {seed}: in step {'is' if serial == in_step else 'IS NOT'} serial, bit for bit")


if __name__ == "__main__":
    main()
