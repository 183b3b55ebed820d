"""Decoded sets on disk, so that the second run starts at once.

One safetensors file a set: it is mapped, not parsed, and nothing in it can run. A disk that cannot
be written only means that there is no cache.
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
from layerwise.data.splits import Parts

VERSION = 1  # of what is decoded and how; part of the key
PARTS = ("train", "validation", "test")

log = logging.getLogger(__name__)


def key(*facts: object) -> str:
    """A file name for everything that decides what is decoded."""
    return hashlib.sha256(repr((VERSION, *facts)).encode()).hexdigest()[:24]


def state(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """What changes when a file does: path, bytes, time of the last change (ns)."""
    found = []
    for file in files:
        stat = file.stat()
        found.append((str(file), stat.st_size, stat.st_mtime_ns))
    return sorted(found)


def read(root: Path, key: str) -> Parts | None:
    """The set written under `key`, or None."""
    path = _path(root, key)
    try:
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            found = {
                part: Images(file.get_tensor(f"{part}.images"), file.get_tensor(f"{part}.labels"))
                for part in PARTS
                if f"{part}.images" in names
            }
            classes = tuple(json.loads(file.metadata()["classes"]))
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        log.warning("cache %s is not readable and is written anew: %s", path, error)
        return None
    return Parts(found["train"], found.get("validation"), found.get("test"), classes)


def write(root: Path, key: str, parts: Parts) -> None:
    """Keep a set that is in memory; a streamed one is left alone."""
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
        # Under another name first: a reader, or a run that was killed, never meets half a file.
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        os.close(handle)
        save_file(tensors, temporary, {"classes": json.dumps(parts.classes)})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        log.warning("decoded images are not cached in %s: %s", path.parent, error)
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _path(root: Path, key: str) -> Path:
    return root / "decoded" / f"{key}.safetensors"
