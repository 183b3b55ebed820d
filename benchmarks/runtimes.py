"""Does it matter where blocks are? Accuracy of the same training in serial, in step, with replay.

    python benchmarks/runtimes.py --data NAME [--seeds 0 1 2] [--runs FOLDER] [OPTIONS]

BasicCNN of 32 channels in three blocks, flip and crop, DGL. OPTIONS go to every `layerwise train`.
A run that is there is continued where it was interrupted, and left alone where it is done; `python
benchmarks/accuracy.py runtimes FOLDER/*` keeps what they measured. It ends with what differs
between the serial weights and those of the stages in step: nothing, where their processes compute
with as many threads.
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
