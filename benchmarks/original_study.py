"""The original study's third experiments on a small network, with several seeds each.

    python benchmarks/original_study.py --data NAME [--seeds 0 1 2] [--runs FOLDER] [OPTIONS]

They ask whether reconstructing the image, or the image shifted, helps blocks that learn locally.
The network is BasicCNN with 32 channels in three blocks, with flips and crops, and the same budget
for all. OPTIONS go to every `layerwise train`. An interrupted run is continued, a finished run is
left alone; `python benchmarks/accuracy.py original-3-small FOLDER/*` keeps the measurements.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from runs import left_to_train

COMMON = (
    "--model basic_cnn --model.channels 32 --augment.flip true --augment.crop 4 "
    "--optimizer SGD --optimizer.lr 0.05 --schedule OneCycle --epochs 6 --batch_size 64 "
    "--channels_last true --pictures 0"
)
BLOCKS = "--at [conv2,conv3] "
HEAD = "--rule.head MLP --rule.head.width 256"
SSL = "--rule Greedy --rule.objectives "
HALF = (
    f"{SSL}Classify+Reconstruct --rule.objectives.Classify.weight 0.5 "
    "--rule.objectives.Reconstruct.weight 0.5 --rule.objectives.Classify.head MLP "
    "--rule.objectives.Classify.head.width 256"
)
VARIANTS = {
    "bp": BLOCKS + "--rule Backprop",
    "dgl": f"{BLOCKS}--rule DGL {HEAD}",
    "dgl-ssl-original": BLOCKS + HALF,
    "dgl-ssl-shifted": f"{BLOCKS}{HALF} --rule.objectives.Reconstruct.shift [5,16]",
    "ssl-original": f"{BLOCKS}{SSL}Reconstruct",
    "ssl-shifted": f"{BLOCKS}{SSL}Reconstruct --rule.objectives.shift [5,16]",
    "random-fixed": BLOCKS + "--rule LastBlock",
    "last-block-only": "--model.skip 2 --blocks 1 --rule Backprop",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("experiments/original-3-small"))
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    given, options = parser.parse_known_args()
    for seed in given.seeds:
        for name in given.only:
            run = given.runs / f"{name}-{seed}"
            arguments = [*shlex.split(COMMON), *shlex.split(VARIANTS[name])]
            arguments += ["--data", given.data, "--seed", str(seed), *options]
            if (left := left_to_train(run, arguments)) is not None:
                subprocess.run([sys.executable, "-m", "layerwise", "train", *left], check=True)


if __name__ == "__main__":
    main()
