"""Compiled blocks: the network is cut first, then each block is compiled."""

import torch
from torch.utils.data import DataLoader

import digits
import layerwise as lw

rule = lw.rules.DGL(lw.cut(digits.network(), blocks=2, example=digits.images[:2]))
for block in rule.blocks:
    block.compile()  # any argument of torch.compile
optimizer = torch.optim.Adam(rule.parameters(), lr=3e-3)

for _ in range(5):
    for images, labels in DataLoader(digits.train, 64, shuffle=True, drop_last=True):
        optimizer.zero_grad()
        rule.backward(images, labels)
        optimizer.step()

images, labels = digits.test[:]
print(f"test accuracy {(rule.eval()(images).argmax(1) == labels).float().mean():.3f}")
