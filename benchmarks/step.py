"""Measure training steps: each result in `results/step-*.json` is one `layerwise bench step`.

python benchmarks/step.py                 every measurement that has no result yet
python benchmarks/step.py resnet110-16    this one, again
python benchmarks/step.py --again         all of them, again; a network that is done stays done if
                                          this is stopped and `benchmarks/step.py` is called next
python benchmarks/step.py --pictures      draw the results again
python benchmarks/step.py --table         all results as one Markdown table

All ways to train a network take turns. Two threads, so the machine should do nothing else: if it
does other work too, two threads mostly measure how long one waits for the other. All of it takes
about half an hour on two quiet cores. Pictures go to docs/pictures/step-*.png.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from layerwise.costs import StepTable, markdown
from layerwise.report.step_picture import draw_steps

RESULTS = Path(__file__).parent / "results"
PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
ALL = "--rivals true --rounds 3 --keep_freed false --threads 2"
ADAM = "--optimizer AdamW --lr 0.001"

MEASUREMENTS = {
    "resnet110-16": (
        "--model resnet110 --batch_size 64 --blocks 16 --segments 16 --rule.head Linear "
        "--title ResNet-110"
    ),
    "resnet50-8": (
        "--model torchvision --model.arch resnet50 --shape [3,112,112] --num_classes 1000 "
        "--batch_size 16 --blocks 8 --segments 8 --rule.head Linear --rule.head.pool 1 "
        "--title ResNet-50"
    ),
    "vgg8b-linear": "--model vgg8b --batch_size 32 --blocks all --rule.head Linear --title VGG8b",
    "vit12-12": (
        "--model vit --model.layers 12 --model.width 512 --model.heads 8 --batch_size 16 "
        f"--blocks 12 --segments 12 --rule.head Linear {ADAM} --title 'ViT 12x512'"
    ),
    "gpt-8": (
        "--model gpt --model.layers 8 --model.width 256 --model.heads 4 --shape [64] "
        "--num_classes 16384 --batch_size 16 --blocks 8 --segments 8 --rule.head Linear "
        f"{ADAM} --title 'GPT 8x256, 16k classes'"
    ),
    "convnext-8": (
        "--model torchvision --model.arch convnext_tiny --shape [3,64,64] --num_classes 1000 "
        f"--batch_size 16 --blocks 8 --segments 8 --rule.head Linear {ADAM} --title ConvNeXt-T"
    ),
    "mixer-8": (
        "--model timm --model.arch mixer_s16_224 --shape [3,112,112] --num_classes 1000 "
        f"--batch_size 16 --blocks 8 --segments 8 --rule.head Linear {ADAM} --title Mixer-S"
    ),
    # The first block holds most of what backpropagation does: nothing to gain from blocks.
    "cnn-4": (
        "--model basic_cnn --model.channels 32 --batch_size 128 --blocks all --rule.head Linear "
        "--title 'CNN, 4 layers'"
    ),
}


def main(names: list[str]) -> None:
    if names == ["--table"]:
        print(markdown(sorted(RESULTS.glob("step-*.json"))))
        return
    if names == ["--pictures"]:
        for name in MEASUREMENTS:
            if (path := RESULTS / f"step-{name}.json").exists():
                draw_steps(StepTable.load(path), PICTURES / f"step-{name}.png")
        return
    if names == ["--again"]:
        names = list(MEASUREMENTS)
        for name in names:
            (RESULTS / f"step-{name}.json").unlink(missing_ok=True)
    if unknown := set(names) - set(MEASUREMENTS):
        sys.exit(f"no such measurement: {', '.join(unknown)}; there is {', '.join(MEASUREMENTS)}")
    for name, options in MEASUREMENTS.items():
        out = RESULTS / f"step-{name}.json"
        if name in names:
            out.unlink(missing_ok=True)
        if not out.exists() and (name in names or not names):
            where = ["--out", str(out.resolve())]
            command = [sys.executable, "-m", "layerwise", "bench", "step"]
            subprocess.run([*command, *shlex.split(f"{options} {ALL}"), *where], check=True)
            draw_steps(StepTable.load(out), PICTURES / f"step-{name}.png")


if __name__ == "__main__":
    main(sys.argv[1:])
