"""Replicas of a rule in place of DistributedDataParallel:
torchrun --nproc-per-node 2 examples/with_ddp.py"""

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler

import digits
import layerwise as lw

dist.init_process_group("gloo")  # nccl on GPUs
rule = lw.rules.DGL(lw.cut(digits.network(), blocks=4, example=digits.images[:2]))
replica = lw.runtime.DataParallel(rule)  # was: DistributedDataParallel(network)
optimizer = torch.optim.Adam(rule.parameters(), lr=3e-3)
sampler = DistributedSampler(digits.train)

for epoch in range(5):
    sampler.set_epoch(epoch)
    for images, labels in DataLoader(digits.train, 32, sampler=sampler):
        optimizer.zero_grad()
        replica.backward(images, labels)  # gradients are averaged while the next block runs
        optimizer.step()

images, labels = digits.test[:]
accuracy = (rule.eval()(images).argmax(1) == labels).float().mean()
if dist.get_rank() == 0:
    print(f"test accuracy {accuracy:.3f}")
dist.destroy_process_group()
