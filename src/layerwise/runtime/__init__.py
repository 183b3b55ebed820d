"""Where blocks live; no runtime knows which rule it runs."""

from layerwise.runtime.layer_parallel import LayerParallel
from layerwise.runtime.serial import Serial

Runtime = Serial | LayerParallel

__all__ = ["LayerParallel", "Runtime", "Serial"]
