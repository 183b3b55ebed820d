"""Networks of the literature, each made from a sample's shape and a number of classes."""

from layerwise.models.airbench import airbench
from layerwise.models.basic_cnn import basic_cnn
from layerwise.models.denoisers import noprop_cnn
from layerwise.models.diffusion import diffusion_vit
from layerwise.models.gate_tree import gate_tree
from layerwise.models.gpt import gpt
from layerwise.models.lstm import lstm
from layerwise.models.mlp import mlp
from layerwise.models.patches import patches
from layerwise.models.resnet import resnet20, resnet32, resnet56, resnet110
from layerwise.models.vgg import (
    vgg8b,
    vgg8c,
    vgg11,
    vgg11b,
    vgg11c,
    vgg13,
    vgg13c,
    vgg16,
    vgg16c,
    vgg19,
    vgg19c,
)
from layerwise.models.vit import vit
from layerwise.models.zoo import timm, torchvision, transformers

__all__ = [
    "airbench",
    "basic_cnn",
    "diffusion_vit",
    "gate_tree",
    "gpt",
    "lstm",
    "mlp",
    "noprop_cnn",
    "patches",
    "resnet20",
    "resnet32",
    "resnet56",
    "resnet110",
    "timm",
    "torchvision",
    "transformers",
    "vgg8b",
    "vgg8c",
    "vgg11",
    "vgg11b",
    "vgg11c",
    "vgg13",
    "vgg13c",
    "vgg16",
    "vgg16c",
    "vgg19",
    "vgg19c",
    "vit",
]
