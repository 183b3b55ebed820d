"""Image sets of the Hugging Face hub, downloaded by name or read from a local directory."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from layerwise.data.sources import cache
from layerwise.data.sources.files import Tree, names_and_sizes, path_of
from layerwise.data.sources.table import parts_of
from layerwise.data.splits import Parts
from layerwise.errors import InputError
from layerwise.hub import asked, reachable


def hub(name: str, *, root: Path, size: int | None, download: bool) -> Parts:
    """Load an image set of the hub.

    The columns are found by their type: one must hold images, and one class labels, or integers
    under a usual name of labels. Splits may have the usual names of the parts, such as `dev`.

    Args:
        name: a local directory or a name on the hub, followed by `#CONFIG` if the set has several
            configurations.
        root: the folder of the cache.
        size: height and width in pixels; None if the images have one size.
        download: whether a set may be downloaded.

    Raises:
        InputError: `datasets` is not installed; there is no such set; it has no image column or no
            label column; the splits have different classes; an image cannot be read.
    """
    place, _, config = name.partition("#")
    folder = path_of(place, "--data hf")
    local = folder.is_dir()
    if not local and place.startswith(("/", ".", "~")):
        raise InputError(f"data hf:{name}: there is no directory {folder}; give one, or a hub name")
    key = about = None
    if local:
        # Known without importing `datasets`: the second run does not need it.
        files = list(Tree(f"hf:{name}").below(folder, lambda _: True))
        if not files:
            raise InputError(f"data hf:{name}: {folder} is empty; it must hold parquet or images")
        key = cache.key("hf", str(folder.resolve()), config, size, cache.state(files))
        # The text of a data set card is no data.
        about = names_and_sizes(folder, [f for f in files if f.path.suffix != ".md"])
        if (kept := cache.read(root, key)) is not None:
            return replace(kept, files=about)
    tables = _open(name, folder.resolve() if local else place, config or None, download)
    if key is None:
        prints = sorted((split, table._fingerprint) for split, table in tables.items())
        key = cache.key("hf", place, config, size, prints)
        if (kept := cache.read(root, key)) is not None:
            return kept
    parts = parts_of(f"hf:{name}", tables, size)
    cache.write(root, key, parts)
    return replace(parts, files=about)


def _open(name: str, place: Path | str, config: str | None, download: bool) -> Mapping[str, Any]:
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"data hf:{name}: the package `datasets` is not installed; pip install layerwise[hub]"
        ) from error

    def opened(cache_dir: str | None) -> Any:
        if isinstance(place, Path) and (place / "dataset_dict.json").exists():
            return datasets.load_from_disk(str(place))
        with asked(isinstance(place, Path) or reach):
            return datasets.load_dataset(str(place), config, cache_dir=cache_dir)

    reach = not isinstance(place, Path) and download and reachable()
    try:
        try:
            tables = opened(None)
        except Exception as error:
            # `datasets` wraps the error of a full disk in an error of its own.
            disk = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(place, Path) or not isinstance(disk, OSError):
                raise
            # Its cache cannot be written (read-only or full): a local set can use a temporary one.
            place_of_its_own = tempfile.mkdtemp()
            atexit.register(shutil.rmtree, place_of_its_own, ignore_errors=True)
            tables = opened(place_of_its_own)
    except Exception as error:  # `datasets` lets through every error of its many readers
        said = " ".join(str(error).split())[:200]
        if isinstance(place, Path):
            remedy = "check that it is an image data set (parquet, or class folders)"
        elif download:
            remedy = "check the name and the network, or give a local copy as hf:DIRECTORY"
        else:
            remedy = "allow the download, or give a local copy as hf:DIRECTORY"
        raise InputError(f"data hf:{name}: {type(error).__name__}: {said}; {remedy}") from error
    if not isinstance(tables, Mapping):
        tables = {"train": tables}
    return tables
