"""Reconstruction of the shifted image: which crops, and which decoder.

    python benchmarks/shifted.py --data NAME [--seeds 0 1 2] [--runs FOLDER] [OPTIONS]

The original study's notes suspect that black borders of padded crops spoil the task of predicting
shifted pixels, and propose to rescale crops; and they propose to interpolate instead of transposed
convolutions. BasicCNN with 32 channels in three blocks, images of 16x16 pixels; the first two
blocks reconstruct the image shifted by 2 and 8 pixels and never read a label; the last block
learns to classify. The classifier's test accuracy tells what the blocks have learned.

OPTIONS go to every `layerwise train`. An interrupted run is continued, a finished run is left
alone; `python benchmarks/accuracy.py shifted FOLDER/*` keeps the measurements.
"""

from __future__ import annotations

from runs import train_variants

COMMON = (
    "--model basic_cnn --model.channels 32 --data.size 16 --at [conv2,conv3] --augment.flip true "
    "--optimizer SGD --optimizer.lr 0.05 --schedule OneCycle --epochs 1 --batch_size 64 "
    "--channels_last true --precision 32 --pictures 0"
)
SHIFTED = "--rule Greedy --rule.objectives Reconstruct --rule.objectives.shift [2,8]"
ZEROS = "--augment.crop 2"
CIRCULAR = f"{ZEROS} --augment.pad_mode circular"
BILINEAR = "--rule.objectives.decoder Bilinear --optimizer.lr 0.02"
VARIANTS = {
    "zeros": f"{SHIFTED} {ZEROS}",
    "reflect": f"{SHIFTED} {ZEROS} --augment.pad_mode reflect",
    "circular": f"{SHIFTED} {CIRCULAR}",
    "rescaled": f"{SHIFTED} --augment.resized_crop true --augment.scale [0.5,1.0]",
    "no-crop": SHIFTED,
    "circular-bilinear": f"{SHIFTED} {CIRCULAR} {BILINEAR}",
    "circular-bilinear-deep": f"{SHIFTED} {CIRCULAR} {BILINEAR} "
    "--rule.objectives.decoder.layers 3 --rule.objectives.decoder.channels 32",
    "circular-unshifted": f"--rule Greedy --rule.objectives Reconstruct {CIRCULAR}",
    "random-fixed": f"--rule LastBlock {CIRCULAR}",
    "dgl": f"--rule DGL --rule.head MLP --rule.head.width 256 {CIRCULAR}",
}


if __name__ == "__main__":
    train_variants(__doc__, COMMON, VARIANTS, "experiments/shifted")
