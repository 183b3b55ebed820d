"""Where blocks live; no runtime knows which rule it runs."""

from layerwise.runtime.data_parallel import DataParallel
from layerwise.runtime.layer_parallel import LayerParallel, check_rule
from layerwise.runtime.serial import Serial

Runtime = Serial | DataParallel | LayerParallel

__all__ = ["DataParallel", "LayerParallel", "Runtime", "Serial", "check_rule"]
