"""Measure training steps: each result in `results/step-*.json` is one `layerwise bench step`.

python benchmarks/step.py                 every measurement that has no result yet
python benchmarks/step.py resnet110-16    this one, again
python benchmarks/step.py --table         all results as one Markdown table

One thread: if the machine does other work too, two threads would mostly measure how long one waits
for the other, in wall-clock time and in CPU time.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from layerwise.costs import markdown

RESULTS = Path(__file__).parent / "results"

RESNET110 = "--model resnet110 --batch_size 128 --rule.head Linear"
RESNET50 = (
    "--model torchvision --model.arch resnet50 --shape [3,112,112] --num_classes 1000 "
    "--batch_size 32 --rule.head Linear --rule.head.pool 1"
)
VIT12 = (
    "--model vit --model.layers 12 --model.width 512 --model.heads 8 --shape [3,32,64] "
    "--batch_size 16 --rule.head Linear"
)
VGG8B = "--model vgg8b --batch_size 32 --blocks all"

MEASUREMENTS = {
    "resnet110-16": f"{RESNET110} --blocks 16 --segments 16 --rounds 3 --title ResNet-110",
    "resnet110-all": f"{RESNET110} --blocks all --segments 16 --rounds 3 --title ResNet-110",
    "resnet50-8": (
        f"{RESNET50} --blocks 8 --segments 8 --step_in_backward true --rounds 3 --title ResNet-50"
    ),
    "resnet50-16": f"{RESNET50} --blocks 16 --segments 8 --rounds 3 --title ResNet-50",
    "vit12-12": (f"{VIT12} --blocks 12 --segments 12 --rounds 3 --title 'ViT 12x512'"),
    "vgg8b-linear": f"{VGG8B} --rule.head Linear --rounds 5 --title VGG8b",
}


def main(names: list[str]) -> None:
    if names == ["--table"]:
        print(markdown(sorted(RESULTS.glob("step-*.json"))))
        return
    if unknown := set(names) - set(MEASUREMENTS):
        sys.exit(f"no such measurement: {', '.join(unknown)}; there is {', '.join(MEASUREMENTS)}")
    for name, options in MEASUREMENTS.items():
        out = RESULTS / f"step-{name}.json"
        if name in names:
            out.unlink(missing_ok=True)
        if not out.exists() and (name in names or not names):
            where = ["--out", str(out.resolve())]
            command = [sys.executable, "-m", "layerwise", "bench", "step", "--threads", "1"]
            subprocess.run([*command, *shlex.split(options), *where], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
