"""Train a network of your own in two processes, which do not wait for each other's backward pass:
torchrun --nproc-per-node 2 examples/two_processes.py"""

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import digits
import layerwise as lw

dist.init_process_group("gloo")
network = digits.network()
rule = lw.rules.DGL(lw.cut(network, blocks=4, example=digits.images[:2]))
stage = lw.runtime.LayerParallel(rule, starts=[0, 2])  # blocks 0 and 1, blocks 2 and 3
own = [p for k in stage.blocks for p in rule.parameters_of(k)]
optimizer = torch.optim.Adam(own, lr=1e-3)

for epoch in range(5):
    torch.manual_seed(epoch)  # both processes read the same batches
    for images, labels in DataLoader(digits.train, batch_size=64, shuffle=True):
        optimizer.zero_grad()
        stage.backward(images, labels)
        optimizer.step()
x, y = digits.test[:]
scores = stage.exits(rule.eval(), x, y)[-1]
if scores is not None:
    print(f"test accuracy {(scores.argmax(1) == y).float().mean():.3f}")
stage.close()
dist.destroy_process_group()
