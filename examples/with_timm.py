"""A learning rule with timm: its network, mixup, optimizer, schedule and average."""

import timm
import torch
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader

import digits
import layerwise as lw

torch.manual_seed(0)
network = timm.create_model("test_resnet", num_classes=10, in_chans=1)
rule = lw.rules.DGL(lw.cut(network, blocks=3, example=torch.zeros(2, 1, 32, 32)))
optimizer = create_optimizer_v2(rule, opt="adamw", lr=3e-3, weight_decay=0.01)
schedule = CosineLRScheduler(optimizer, t_initial=4, warmup_t=1, warmup_lr_init=1e-4)
mixup = Mixup(mixup_alpha=0.1, num_classes=10, label_smoothing=0.0)
average = ModelEmaV3(network, decay=0.9)

for epoch in range(4):
    schedule.step(epoch)
    for images, labels in DataLoader(digits.train, 64, shuffle=True, drop_last=True):
        images, labels = mixup(interpolate(images, 32), labels)  # labels are probabilities now
        optimizer.zero_grad()
        report = rule.backward(images, labels)  # was: loss_fn(network(images), labels).backward()
        optimizer.step()
        average.update(network)

images, labels = digits.test[:]
accuracy = (average.module.eval()(interpolate(images, 32)).argmax(1) == labels).float().mean()
print(f"test accuracy {accuracy:.3f}")
