"""Where blocks live; no runtime knows which rule it runs."""

from layerwise.runtime.layer_parallel import LayerParallel

__all__ = ["LayerParallel"]
