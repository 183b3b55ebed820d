"""Export a classifier whose samples leave at the first exit that is sure enough."""

import torch
from torch import nn
from torch.export import Dim, export, load, save
from torch.utils.data import DataLoader

import digits
import layerwise as lw
from layerwise.analysis.exits import EarlyExit, fit_temperatures

rule = lw.rules.DGL(lw.cut(digits.network(), blocks=4, example=digits.images[:2]))
lw.fit(rule, digits.train, epochs=5, batch_size=64)
held_out, test = torch.utils.data.random_split(digits.test, [0.5, 0.5])
temperatures = fit_temperatures(rule, DataLoader(held_out, 64))
network = EarlyExit(rule, 0.9, temperatures).eval()
save(export(network, (digits.images[:8],), dynamic_shapes=({0: Dim("batch", min=2)},)), "digits.pt2")
