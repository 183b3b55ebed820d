"""The original study's third experiments on a small network, with several seeds each.

    python benchmarks/original_study.py --data NAME [--seeds 0 1 2] [--runs FOLDER] [OPTIONS]

They ask whether reconstructing the image, or the image shifted, helps blocks that learn locally.
The network is BasicCNN with 32 channels in three blocks, with flips and crops, and the same budget
for all. OPTIONS go to every `layerwise train`. An interrupted run is continued, a finished run is
left alone; `python benchmarks/accuracy.py original-3-small FOLDER/*` keeps the measurements.
"""

from __future__ import annotations

from runs import train_variants

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


if __name__ == "__main__":
    train_variants(__doc__, COMMON, VARIANTS, "experiments/original-3-small")
