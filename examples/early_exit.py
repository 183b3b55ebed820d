"""Export a classifier that ends at the first exit that is sure enough."""

import torch
from torch.utils.data import random_split

import digits
import layerwise as lw
from layerwise.analysis.exits import EarlyExit, fit_temperatures

held_out, test = random_split(digits.test, [0.5, 0.5], torch.Generator().manual_seed(0))
rule = lw.rules.DGL(lw.cut(digits.network(), blocks=4, example=digits.images[:2]))
lw.fit(rule, digits.train, epochs=5, batch_size=64, optimizer=lw.trainer.optim.AdamW(lr=0.01))

temperatures = fit_temperatures(rule, held_out)
network = EarlyExit(rule, 0.9, temperatures).eval()
image = digits.images[:1]
torch.export.save(torch.export.export(network, (image,)), "early-exit.pt2")

classify = torch.export.load("early-exit.pt2").module()
images, labels = test[:]
scores, taken = network.decide(images)
assert torch.allclose(classify(images[:1]), scores[:1], atol=1e-5)
print(f"test accuracy {(scores.argmax(1) == labels).float().mean():.3f}")
print(f"images that leave at each exit: {torch.bincount(taken, minlength=4).tolist()}")
