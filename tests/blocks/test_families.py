"""Every classification family of torchvision and timm: the chain is the model."""

import pytest
import torch
import torchvision

from layerwise import cut

pytestmark = pytest.mark.slow

# Pixels the model is run with, and into how many blocks it divides.
TORCHVISION = {
    "alexnet": (64, 8),
    "vgg11_bn": (64, 11),
    "resnet18": (64, 10),
    "resnet50": (64, 18),
    "resnext50_32x4d": (64, 18),
    "wide_resnet50_2": (64, 18),
    "densenet121": (64, 9),
    "squeezenet1_1": (64, 18),
    "googlenet": (64, 13),
    "inception_v3": (96, 17),
    "mobilenet_v2": (64, 33),
    "mobilenet_v3_small": (64, 28),
    "mobilenet_v3_large": (64, 32),
    "shufflenet_v2_x0_5": (64, 19),
    "mnasnet0_5": (64, 33),
    "efficientnet_b0": (64, 39),
    "efficientnet_v2_s": (64, 54),
    "regnet_y_400mf": (64, 18),
    "convnext_tiny": (64, 23),
    "vit_b_16": (224, 26),
    "swin_t": (64, 29),
    "swin_v2_t": (64, 29),
    "maxvit_t": (224, 59),
}
TIMM = {
    "resnet18": (64, 10),
    "vit_tiny_patch16_224": (224, 26),
    "deit_tiny_patch16_224": (224, 26),
    "convnext_atto": (64, 17),
    "mixer_s32_224": (224, 18),
    "efficientnet_b0": (64, 39),
    "swin_tiny_patch4_window7_224": (224, 17),
    "eva02_tiny_patch14_224": (224, 25),
    "mobilenetv4_conv_small": (64, 26),
}


def check(model, pixels, pieces):
    model.eval()
    x = torch.randn(2, 3, pixels, pixels)
    four, every = cut(model, 4, example=x), cut(model, "all", example=x)
    assert (len(four), len(every)) == (4, pieces)
    used = [id(p) for name, p in model.named_parameters() if "aux" not in name.lower()]
    with torch.no_grad():
        expected = {n: model(x[:n]) for n in (1, 2)}
        for chain in (four, every):
            assert sorted(id(p) for block in chain for p in block.parameters()) == sorted(used)
            assert all(torch.equal(chain(x[:n]), y) for n, y in expected.items())


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name):
    kwargs = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    check(torchvision.models.get_model(name, weights=None, **kwargs), *TORCHVISION[name])


@pytest.mark.parametrize("name", TIMM)
def test_timm(name):
    timm = pytest.importorskip("timm")
    check(timm.create_model(name, pretrained=False), *TIMM[name])
