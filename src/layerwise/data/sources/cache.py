"""A cache of decoded sets on disk, so that the second run starts at once.

Each set is one safetensors file. It is mapped, not parsed, and nothing in it can be executed. If
the disk cannot be written, there is no cache, and nothing else changes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from layerwise.data.images import Images
from layerwise.data.sources.files import File
from layerwise.data.splits import Parts

VERSION = 2  # changes with the decoding; part of the key. 2: images are turned as EXIF says
PARTS = ("train", "validation", "test")

log = logging.getLogger(__name__)


def key(*facts: object) -> str:
    """A file name made from all facts that influence the decoded images."""
    return hashlib.sha256(repr((VERSION, *facts)).encode()).hexdigest()[:24]


def state(files: Iterable[File]) -> list[tuple[str, int, int]]:
    """For each file its path, size in bytes and time of last change in ns, to notice changes."""
    return sorted((str(file.path), file.size, file.changed_ns) for file in files)


def read(root: Path, key: str) -> Parts | None:
    """The set that was written under `key`, or None."""
    path = _path(root, key)
    try:
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            found = {
                part: Images(file.get_tensor(f"{part}.images"), file.get_tensor(f"{part}.labels"))
                for part in PARTS
                if f"{part}.images" in names
            }
            about = file.metadata()
            classes = tuple(json.loads(about["classes"]))
            left_out = tuple(json.loads(about["left_out"]))
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        log.warning("cache %s is not readable and is written anew: %s", path, error)
        return None
    return Parts(
        found["train"], found.get("validation"), found.get("test"), classes, left_out=left_out
    )


def write(root: Path, key: str, parts: Parts) -> None:
    """Write a set that is in memory; a streamed set is not cached."""
    tensors = {}
    for name in PARTS:
        part = getattr(parts, name)
        if part is None:
            continue
        if not isinstance(part, Images):
            return
        tensors |= {f"{name}.images": part.images, f"{name}.labels": part.labels}
    path = _path(root, key)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Under a temporary name first, so that nobody ever reads half a file.
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        os.close(handle)
        about = {"classes": json.dumps(parts.classes), "left_out": json.dumps(parts.left_out)}
        save_file(tensors, temporary, about)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        log.warning("decoded images are not cached in %s: %s", path.parent, error)
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _path(root: Path, key: str) -> Path:
    return root / "decoded" / f"{key}.safetensors"
