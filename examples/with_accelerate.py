"""A learning rule with accelerate, in one process or several:
accelerate launch --cpu --num_processes 2 examples/with_accelerate.py"""

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

import digits
import layerwise as lw

accelerator = Accelerator()
rule = lw.rules.DGL(lw.cut(digits.network(), blocks=4, example=digits.images[:2]))
rule.to(accelerator.device)
optimizer = torch.optim.Adam(rule.parameters(), lr=3e-3)
train = DataLoader(digits.train, 64, shuffle=True)
# Not the rule: DistributedDataParallel, which accelerate wraps it in, needs its own backward pass.
optimizer, train = accelerator.prepare(optimizer, train)
several = accelerator.num_processes > 1
runtime = lw.runtime.DataParallel(rule) if several else lw.runtime.Serial(rule)

for _ in range(5):
    for images, labels in train:
        optimizer.zero_grad()
        with accelerator.autocast():
            report = runtime.backward(images, labels)  # was: accelerator.backward(loss)
        optimizer.step()

images, labels = (part.to(accelerator.device) for part in digits.test[:])
accuracy = (rule.eval()(images).argmax(1) == labels).float().mean()
accelerator.print(f"test accuracy {accuracy:.3f}")
accelerator.end_training()
