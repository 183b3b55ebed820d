"""Compare learning rules on a network of timm, with data of your own."""

import timm
import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset, random_split

import layerwise as lw
from layerwise.cli import main as layerwise

pixels, classes = load_digits(return_X_y=True)
images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
digits = TensorDataset(torch.nn.functional.interpolate(images, 32), torch.tensor(classes))
train, validation, test = random_split(digits, [0.7, 0.1, 0.2], torch.Generator().manual_seed(0))
data = {"train": train, "validation": validation, "test": test}

runs = []
for rule in (lw.rules.Backprop, lw.rules.DGL, lw.rules.FeedbackAlignment):
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=10, in_chans=1)
    blocks = lw.cut(network, blocks=3, example=digits[:2][0])
    run = lw.fit(rule(blocks), **data, epochs=3, batch_size=64, name=f"digits-{rule.__name__}")
    runs.append(str(run.path))
layerwise(["compare", *runs, "--html", "true"])  # the table, curves.png and report.html
