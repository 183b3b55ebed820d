"""A data set by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from layerwise.data.digits import digits
from layerwise.data.folder import folder
from layerwise.data.hierarchical import hierarchical
from layerwise.data.hub import hub
from layerwise.data.images import Images
from layerwise.data.markov import markov
from layerwise.data.splits import Parts, Source, Splits, complete, relabel
from layerwise.data.text import CONTEXT, Text, characters, read
from layerwise.data.torchvision_sets import SETS, imagenet
from layerwise.errors import InputError, choices

NAMES = (
    "digits",
    "hierarchical",
    *SETS,
    "imagenet",
    "folder:PATH",
    "hf:NAME_OR_DIRECTORY",
    "markov",
    "text:PATH",
)


def load(
    name: str,
    *,
    root: str | Path = "~/.cache/layerwise",
    size: int | None = None,
    context: int | None = None,
    validation: float = 0.1,
    random_labels: float = 0.0,
    seed: int = 0,
    download: bool = True,
) -> Splits:
    """Load a data set and cut it into train, validation and test.

    The official test part is the test; validation is the set's own where it has one, else a part of
    the official training part with the classes in proportion. A set without a test part gives a
    fifth of itself, the same for every `seed`. A set whose only held-out part is called validation
    (ImageNet) is tested on it.

    A text is cut by position, the same for every `seed`: the last fifth is the test, and the end of
    what is before it the validation.

    Args:
        name: digits, hierarchical, mnist, fashion-mnist, cifar10, cifar100, svhn, stl10, imagenet,
            `folder:PATH` or a path (class folders, with or without train/val/test above them),
            `hf:NAME` or `hf:DIRECTORY` (an image set of the Hugging Face hub; `hf:NAME#CONFIG`);
            markov (a generated language of known entropy rate), `text:PATH` (the characters of a
            UTF-8 file, or of a folder's .txt files).
        root: where downloads and decoded images are kept.
        size: scale every image to `size` x `size` pixels: the shorter side, then the central
            square. None leaves them as they are (imagenet: 224).
        context: of a text, the tokens of a window; None: 64.
        validation: share of the training part that is held out, in [0, 1); 0 for none.
        random_labels: share of the training images whose label is drawn anew, every class with the
            same probability (Zhang et al. 2017, arXiv:1611.03530); validation and test keep theirs.
        seed: of the validation part and of the random labels.
        download: whether what is missing may be fetched.

    Returns:
        Splits in memory as uint8, or streamed where they would take more than 4 GiB.

    Raises:
        InputError: one line; what was asked for and what to do instead.
    """
    if not 0 <= validation < 1:
        raise InputError(
            f"load(validation={validation}): give a share of the training part, 0 <= validation < 1"
        )
    if not 0 <= random_labels <= 1:
        raise InputError(
            f"load(random_labels={random_labels}): give a share of the training images, 0 to 1"
        )
    if size is not None and size < 1:
        raise InputError(f"load(size={size}): give 1 pixel or more, or None for as they are")
    if seed < 0:
        raise InputError(f"load(seed={seed}): give 0 or more")
    if context is not None and context < 1:
        raise InputError(f"load(context={context}): give 1 token or more, or None for {CONTEXT}")
    parts = _parts(name, Path(root).expanduser(), size, context, download)
    if size is not None:
        parts = _resized(parts, size)
    splits = complete(parts, name=name, validation=validation, seed=seed)
    return relabel(splits, random_labels, seed) if random_labels else splits


def _parts(name: str, root: Path, size: int | None, context: int | None, download: bool) -> Parts:
    text = _text(name, context or CONTEXT)
    if text is not None:
        if size is not None:
            raise InputError(f"load({name!r}, size={size}): of images; leave it out for a text")
        return text
    if context is not None:
        raise InputError(
            f"load({name!r}, context={context}): of text, such as markov; leave it out for images"
        )
    fixed: dict[str, Callable[[], Parts]] = {
        "digits": digits,
        "hierarchical": hierarchical,
        "imagenet": lambda: imagenet(root, size or 224),
        **{known: lambda get=get: get(root, download) for known, get in SETS.items()},
    }
    kind, _, rest = name.partition(":")
    if name in fixed:
        return fixed[name]()
    if kind == "hf" and rest:
        return hub(rest, root=root, size=size, download=download)
    if kind == "folder" and rest:
        return folder(Path(rest).expanduser(), name=name, root=root, size=size)
    path = Path(name).expanduser()
    if path.is_dir() or name.startswith((".", "/", "~")):
        return folder(path, name=name, root=root, size=size)
    raise InputError(f"load({name!r}): no such data set; {choices(name, NAMES)}")


def _text(name: str, context: int) -> Parts | None:
    """The texts among the sets."""
    kind, _, rest = name.partition(":")
    if name == "markov":
        return markov(context)
    if kind == "text" and rest:
        tokens, vocabulary = characters(read(Path(rest).expanduser(), name))
        return Parts(Text(tokens, context), None, None, vocabulary)
    return None


def _resized(parts: Parts, size: int) -> Parts:
    """Sets that come decoded are scaled here; folders and tables were while they were decoded."""

    def scaled(part: Source) -> Source:
        return part.resized(size) if isinstance(part, Images) else part

    held, test = parts.validation, parts.test
    return Parts(scaled(parts.train), held and scaled(held), test and scaled(test), parts.classes)
