"""Runtimes: the blocks of a rule in one process, in several stages, or in replicas."""

from layerwise.runtime.data_parallel import DataParallel
from layerwise.runtime.layer_parallel import LayerParallel, check_rule
from layerwise.runtime.runtime import Runtime, StepOptions
from layerwise.runtime.serial import Serial

__all__ = ["DataParallel", "LayerParallel", "Runtime", "Serial", "StepOptions", "check_rule"]
