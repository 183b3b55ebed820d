"""The format of a checkpoint: nested state in one safetensors file.

Tensors are stored under their path in the state; everything else is JSON in the file's header. A
checksum covers both. Nothing in such a file can be executed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from layerwise.errors import InputError, reason
from layerwise.runs.checksum import CHECKSUM, Damaged, checksum, read_tensors

FAMILY = "layerwise-checkpoint-"
FORMAT = f"{FAMILY}2"
WITHOUT_CHECKSUM = f"{FAMILY}1"  # of earlier versions
USE_ANOTHER = "use another one: --checkpoint NAME"
ERRORS = (
    OSError,
    safetensors.SafetensorError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
)


def pack(state: Mapping[str, Any]) -> bytes:
    """The content of a checkpoint file.

    Args:
        state: nested mappings, lists, numbers, strings and tensors.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = _pack(state, "", tensors)
    text = json.dumps(skeleton)
    about = {"format": FORMAT, "state": text, CHECKSUM: checksum(tensors, text)}
    return safetensors.torch.save(tensors, metadata=about)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a file that holds what `pack` gave. Tuples come back as lists.

    Raises:
        InputError: the file cannot be read, is cut short, has a wrong checksum, is of another
            version, or is not a checkpoint of this library.
    """
    try:
        tensors, about = read_tensors(path)
        kind = about.get("format", "")
        if not kind.startswith(FAMILY):
            raise InputError(
                f"checkpoint {path}: a safetensors file, but not a checkpoint of layerwise; "
                "give one that `layerwise train` wrote"
            )
        if kind not in (FORMAT, WITHOUT_CHECKSUM):
            raise InputError(
                f"checkpoint {path}: its format is {kind}, and this version of layerwise reads "
                f"{FORMAT} and older ones; use the version that wrote it"
            )
        if kind == FORMAT and about[CHECKSUM] != checksum(tensors, about["state"]):
            raise Damaged("its checksum is wrong: it changed after it was written")
        state = _unpack(json.loads(about["state"]), tensors)
        if not isinstance(state, dict):
            raise Damaged("it holds no mapping")
        return state
    except InputError:
        raise
    except ERRORS as error:
        raise InputError(
            f"checkpoint {path}: corrupt or not a checkpoint ({reason(error)}); {USE_ANOTHER}"
        ) from error


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        # Cloned: parts of the state may share memory, which the format refuses.
        tensors[path] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": path}
    if isinstance(value, Mapping):
        items = [[k, _pack(v, f"{path}/{k}", tensors)] for k, v in value.items()]
        return {"mapping": items}
    if isinstance(value, (list, tuple)):
        return [_pack(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]
    return value


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(v, tensors) for v in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {k: _unpack(v, tensors) for k, v in value["mapping"]}
    return value
