"""Where blocks live; no runtime knows which rule it runs."""

from layerwise.runtime.layer_parallel import LayerParallel, check_rule
from layerwise.runtime.serial import Serial

Runtime = Serial | LayerParallel

__all__ = ["LayerParallel", "Runtime", "Serial", "check_rule"]
