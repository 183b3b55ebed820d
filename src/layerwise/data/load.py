"""Loading a data set by its name."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from layerwise.data.sources.boolean import circuit, digit_parity, parity
from layerwise.data.sources.cantor import cantor
from layerwise.data.sources.copying import copy, repeat_copy
from layerwise.data.sources.digits import digits
from layerwise.data.sources.files import path_of
from layerwise.data.sources.folder import folder
from layerwise.data.sources.hierarchical import hierarchical
from layerwise.data.sources.hub import hub
from layerwise.data.sources.markov import markov
from layerwise.data.sources.text_files import characters, read
from layerwise.data.sources.torchvision_sets import SETS, imagenet, load_set
from layerwise.data.sources.views import views
from layerwise.data.splits import Parts, Splits, complete, hide_labels, relabel
from layerwise.data.text import CONTEXT, Text
from layerwise.errors import InputError, choices

GENERATED: dict[str, Callable[..., Parts]] = {
    "hierarchical": hierarchical,
    "parity": parity,
    "digit-parity": digit_parity,
    "circuit": circuit,
    "cantor": cantor,
    "views": views,
    "copy": copy,
    "repeat-copy": repeat_copy,
}
NAMES = (
    "digits",
    *GENERATED,
    *SETS,
    "imagenet",
    "folder:PATH",
    "hf:NAME_OR_DIRECTORY",
    "markov",
    "text:PATH",
)

LARGEST_SIDE = 8192  # pixels of an image; a batch of larger ones fits into no memory

log = logging.getLogger(__name__)


def load(
    name: str,
    *,
    root: str | Path = "~/.cache/layerwise",
    size: int | None = None,
    context: int | None = None,
    contiguous: bool = False,
    validation: float = 0.1,
    random_labels: float = 0.0,
    labels: float = 1.0,
    unlabelled: bool = True,
    seed: int = 0,
    download: bool = True,
) -> Splits:
    """Load a data set and cut it into training, validation and test parts.

    The official test part is the test part. The validation part is the set's own if it has one,
    otherwise a part of the official training part with the classes in proportion. If a set has no
    test part, a fifth of it becomes the test part, the same fifth for every `seed`. If the only
    held-out part of a set is called validation (as in ImageNet), it is the test part.

    A text is cut by position, the same for every `seed`: the last fifth is the test part, and the
    end of the rest is the validation part.

    Args:
        name: digits, mnist, fashion-mnist, cifar10, cifar100, svhn, stl10, imagenet,
            `folder:PATH` or a path (class folders, with or without train/val/test above them),
            `hf:NAME` or `hf:DIRECTORY` (an image set of the Hugging Face hub; `hf:NAME#CONFIG`);
            markov (a generated language of known entropy rate), `text:PATH` (the characters of a
            UTF-8 file, or of a folder's .txt files); or one of the generated sets hierarchical,
            parity, digit-parity, circuit, cantor, views, copy and repeat-copy, with options of its
            function in `layerwise.data.sources`: `parity:bits=128,relevant=5,bias=0.6`.
        root: the folder for downloads and decoded images.
        size: scale every image to `size` x `size` pixels: first its shorter side, then the centre
            is cut out. None keeps the images' own size (imagenet: 224).
        context: of a text, the number of tokens in a window; None: 64.
        contiguous: whether the windows of a text come in order, so that each row of a batch
            continues in the next batch and a state can be carried.
        validation: share of the training part that is held out, in [0, 1); 0 for none.
        random_labels: share of the training images whose label is drawn anew, every class with the
            same probability (Zhang et al. 2017, arXiv:1611.03530); validation and test parts keep
            their labels.
        labels: share of the training images that keep their label, the classes in proportion. The
            others get the label that does not count, -100: losses that read labels leave them out,
            objectives without labels train on all images.
        unlabelled: whether the images without a label are in the training part; if not, the others
            are repeated in their place, so that an epoch has equally many steps.
        seed: of the choice of the validation part, of the random labels and of the labels that are
            kept. With one seed, a smaller share is part of a larger one, except for at most
            one image of a class whose share has to be rounded.
        download: whether a missing set may be downloaded.

    Returns:
        Splits in memory as uint8, or streamed if they would take more than 4 GiB.

    Raises:
        InputError: the set cannot be loaded as asked; the message says what to do instead.
    """
    _check(size, validation, random_labels, labels, seed)
    if context is not None and context < 1:
        raise InputError(f"load(context={context}): give 1 token or more, or None for {CONTEXT}")
    parts = _text(name, context, contiguous)
    if parts is None:
        parts = _parts(name, path_of(root, "--data.root"), size, download)
    if size is not None and isinstance(parts.train, Text):
        raise InputError(
            f"load({name!r}, size={size}): images have a size; leave it out for a text"
        )
    return split(
        parts,
        name,
        size=size,
        validation=validation,
        random_labels=random_labels,
        labels=labels,
        unlabelled=unlabelled,
        seed=seed,
    )


def split(
    parts: Parts,
    name: str,
    *,
    size: int | None = None,
    validation: float = 0.1,
    random_labels: float = 0.0,
    labels: float = 1.0,
    unlabelled: bool = True,
    seed: int = 0,
) -> Splits:
    """Cut a set that is already there into training, validation and test parts.

    Args:
        parts: the set.
        name: what it is called.
        size, validation, random_labels, labels, unlabelled, seed: as in `load`.

    Raises:
        InputError: the set cannot be divided so.
    """
    _check(size, validation, random_labels, labels, seed)
    if size is not None:
        parts = _resized(parts, size)
    for sentence in parts.left_out:
        log.warning("data %s: %s", name, sentence)
    splits = complete(parts, name=name, validation=validation, seed=seed)
    if random_labels:
        return relabel(splits, random_labels, seed)
    return hide_labels(splits, labels, unlabelled, seed) if labels < 1 else splits


def _check(
    size: int | None, validation: float, random_labels: float, labels: float, seed: int
) -> None:
    if not 0 <= validation < 1:
        raise InputError(
            f"load(validation={validation}): give a share of the training part, 0 <= validation < 1"
        )
    if not 0 <= random_labels <= 1:
        raise InputError(
            f"load(random_labels={random_labels}): give a share of the training images, 0 to 1"
        )
    if not 0 < labels <= 1:
        raise InputError(
            f"load(labels={labels}): give a share of the training images, above 0 to 1"
        )
    if labels < 1 and random_labels:
        raise InputError(
            f"load(labels={labels}, random_labels={random_labels}): give only one of both"
        )
    if size is not None and not 1 <= size <= LARGEST_SIDE:
        raise InputError(
            f"load(size={size}): give 1 to {LARGEST_SIDE} pixels, or None for the images' own size"
        )
    if seed < 0:
        raise InputError(f"load(seed={seed}): give 0 or more")


def _parts(name: str, root: Path, size: int | None, download: bool) -> Parts:
    fixed: dict[str, Callable[[], Parts]] = {
        "digits": digits,
        "imagenet": lambda: imagenet(root, size or 224),
        **{known: partial(load_set, known, root, download) for known in SETS},
    }
    kind, _, rest = name.partition(":")
    if name in fixed:
        return fixed[name]()
    if kind in GENERATED:
        return _generated(name, kind, rest)
    if kind == "hf" and rest:
        return hub(rest, root=root, size=size, download=download)
    if kind == "folder" and rest:
        return folder(path_of(rest, "--data folder"), name=name, root=root, size=size)
    path = path_of(name, "--data")
    if path.is_dir() or name.startswith((".", "/", "~")):
        return folder(path, name=name, root=root, size=size)
    raise InputError(f"load({name!r}): no such data set; {choices(name, NAMES)}")


def _generated(name: str, kind: str, options: str) -> Parts:
    """Make a generated set with options such as `bits=128,bias=0.6`."""
    make = GENERATED[kind]
    known = inspect.signature(make).parameters
    given: dict[str, int | float | str] = {}
    for option in options.split(",") if options else ():
        key, _, value = option.partition("=")
        if key not in known:
            raise InputError(f"load({name!r}): {key!r}: {choices(key, known)}")
        of_type = type(known[key].default)
        try:
            given[key] = of_type(value)
        except ValueError:
            words = "a whole number" if of_type is int else "a number"
            raise InputError(f"load({name!r}): {key}={value}: give {words}") from None
    return make(**given)


def _text(name: str, context: int | None, contiguous: bool) -> Parts | None:
    """The parts of a set of text, or None if `name` is not one.

    Raises:
        InputError: an option that the set does not have.
    """
    kind, _, path = name.partition(":")
    of_text = name == "markov" or (kind == "text" and bool(path))
    for option, value, which in (
        ("context", context, "have a context"),
        ("contiguous", contiguous or None, "are contiguous"),
    ):
        if value is not None and not of_text:
            raise InputError(
                f"load({name!r}, {option}={value}): only texts, such as markov, {which}; leave it "
                "out"
            )
    if not of_text:
        return None
    size = context or CONTEXT
    if name == "markov":
        parts = markov(size)
    else:
        tokens, vocabulary = characters(read(path_of(path, "--data text"), name))
        parts = Parts(Text(tokens, size), None, None, vocabulary)
    assert isinstance(parts.train, Text)
    return replace(parts, train=replace(parts.train, contiguous=contiguous))


def _resized(parts: Parts, size: int) -> Parts:
    """Scale sets that come decoded; folders and tables were scaled while they were decoded."""
    held, test = parts.validation, parts.test
    train = parts.train.resized(size)
    return replace(
        parts,
        train=train,
        validation=held and held.resized(size),
        test=test and test.resized(size),
    )
