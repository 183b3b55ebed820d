"""Sharded weights (FSDP2) under a learning rule:
torchrun --nproc-per-node 2 examples/with_fsdp2.py"""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler

import digits
import layerwise as lw

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))  # cuda on GPUs
network = digits.network()
rule = lw.rules.DGL(lw.cut(network, blocks=4, example=digits.images[:2]))
for layer in network:
    fully_shard(layer, mesh=mesh)
for k in range(len(rule.blocks)):
    for head in rule.auxiliary(k):
        fully_shard(head, mesh=mesh)
optimizer = torch.optim.Adam(rule.parameters(), lr=3e-3)
sampler = DistributedSampler(digits.train)

for epoch in range(5):
    sampler.set_epoch(epoch)
    for images, labels in DataLoader(digits.train, 32, sampler=sampler):
        optimizer.zero_grad()
        rule.backward(images, labels)
        optimizer.step()

images, labels = digits.test[:]
accuracy = (rule.eval()(images).argmax(1) == labels).float().mean()
if dist.get_rank() == 0:
    print(f"test accuracy {accuracy:.3f}")
dist.destroy_process_group()
