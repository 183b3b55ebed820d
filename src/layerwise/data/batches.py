"""Batches from any iterable of inputs and labels: a `DataLoader`, a data set, a list."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, IterableDataset

from layerwise.data.loader import Loader, seed_of
from layerwise.data.samples import Samples
from layerwise.errors import InputError, reason
from layerwise.inputs import plain, tensors

LABELS = ("labels", "label", "targets", "target", "y")  # names of labels in a batch that is a dict


class Batches:
    """The batches of an iterable, as a training and the analyses read them.

    A batch is (inputs, labels), or a mapping with the labels under one of the names `labels`,
    `label`, `targets`, `target` and `y`, and the inputs under the others: the only one as it is,
    several as named arguments of the network. Inputs are whatever the network takes: a tensor, a
    tuple or a mapping of tensors.

    Before each batch, PyTorch's generator is seeded with the seed, the epoch and the batch's
    number, so that a `DataLoader` shuffles and augments the same way whenever the epoch is read;
    before each epoch, so are the generators that the loader and its samplers were given. A training
    that is continued within an epoch reads and drops the batches before.

    Args:
        source: the iterable, read once for each epoch. A data set that gives single samples
            (`torch.utils.data.Dataset`, or one of Hugging Face) gets a `DataLoader`.
        batch_size: of a data set that gives single samples.
        train: whether such a data set is shuffled, without a last batch that is not full.
        device: where batches are sent.
        seed: of the order and the augmentation.
        channels_last: memory format of inputs that are images.
        name: of the argument, for errors.

    Attributes:
        batch_size: samples per batch.
        size: samples of an epoch, as if all batches were full.
        shape: of a sample's first input.
        tokens: whether a sample has a label for each of its tokens.
        example_labels: the labels of the first batch.
        views: inputs for each of these labels.
        marks: a checksum for each batch of the epoch that is read, over the labels up to it.

    Raises:
        InputError: the source cannot be iterated, or has no length.
    """

    curriculum = None
    unit = "samples"

    def __init__(
        self,
        source: Iterable[Any],
        *,
        batch_size: int = 128,
        train: bool = False,
        device: str | torch.device = "cpu",
        seed: int = 0,
        channels_last: bool = False,
        name: str = "batches",
    ):
        if isinstance(source, Dataset) or hasattr(source, "column_names"):
            source = _loader(source, batch_size, train, name)
        if not isinstance(source, Iterable) or isinstance(source, Iterator):
            kind = type(source).__name__
            raise InputError(
                f"{name}: {kind} cannot be read once for each epoch; give a DataLoader, a data "
                "set or a list of batches (inputs, labels)"
            )
        try:
            self._batches = len(source)  # type: ignore[arg-type]
        except TypeError as error:
            raise InputError(
                f"{name}: {type(source).__name__} has no length, which the learning rate's "
                "schedule needs; give a DataLoader of a map-style data set, or a list of batches"
            ) from error
        if self._batches == 0:
            raise InputError(f"{name}: there is no batch in it")
        self.source, self.name, self.seed = source, name, seed
        self.device, self.channels_last = torch.device(device), channels_last
        self.marks: list[int] = []
        with torch.random.fork_rng(devices=[]):
            x, y = self._read(self._first())
        if y.dim() == 0:
            raise InputError(
                f"{name}: it gives single samples, with one label each; give batches, such as "
                "DataLoader(dataset, batch_size=32)"
            )
        self.example_labels = y
        rows = len(found[0]) if (found := tensors(x)) and found[0].dim() else 0
        self.shape = tuple(found[0].shape[1:]) if found else ()
        self.views = rows // len(y) if rows and len(y) and rows % len(y) == 0 else 1
        self.batch_size = getattr(source, "batch_size", None) or len(y)
        self.size = self._batches * self.batch_size
        self.tokens = y.dim() == 2 and not y.is_floating_point()

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return self._batches

    def epoch(self, e: int, start: int = 0) -> Iterator[tuple[Any, Tensor]]:
        """The batches of epoch `e`, from batch number `start` on."""
        seed = seed_of(self.seed, e, 0)
        of_batches = getattr(self.source, "batch_sampler", None)
        samplers = (getattr(of, "sampler", None) for of in (self.source, of_batches))
        for of in (self.source, of_batches, *samplers):
            if hasattr(of, "set_epoch"):
                of.set_epoch(e)  # type: ignore[union-attr]
            if isinstance(generator := getattr(of, "generator", None), torch.Generator):
                generator.manual_seed(seed)
        self.marks = []
        torch.default_generator.manual_seed(seed)
        batches = iter(self.source)
        for b in range(self._batches):
            torch.default_generator.manual_seed(seed_of(self.seed, e, b + 1))
            try:
                batch = next(batches)
            except StopIteration:
                raise InputError(
                    f"{self.name}: it ended after {b} batches of {self._batches}, its length"
                ) from None
            x, y = self._read(batch)
            self.marks.append(_mark(y, self.marks[-1] if b else 0))
            if b >= start:
                yield self._sent(x), y.to(self.device, non_blocking=True)

    def labels(self, e: int, start: int = 0) -> Iterator[Tensor]:
        """Only the labels of `epoch(e, start)`."""
        return (y for _, y in self.epoch(e, start))

    def _first(self) -> Any:
        """The first batch.

        Raises:
            InputError: it cannot be made.
        """
        try:
            return next(iter(self.source))
        except StopIteration:
            raise InputError(f"{self.name}: it has a length, but gives no batch") from None
        except Exception as error:  # whatever the source, its workers and its collation raise
            raise InputError(
                f"{self.name}: its first batch cannot be made: {reason(error)}; for samples of "
                "several sizes give a DataLoader with a collate_fn that pads them"
            ) from error

    def _read(self, batch: Any) -> tuple[Any, Tensor]:
        """Inputs and labels of a batch.

        Raises:
            InputError: it is no such pair.
        """
        if isinstance(batch, Mapping):
            names = [name for name in LABELS if name in batch]
            inputs = {key: value for key, value in batch.items() if key not in names}
            if len(names) == 1 and inputs:
                x: Any = inputs if len(inputs) > 1 else next(iter(inputs.values()))
                return x, self._labels(batch[names[0]])
            if len(names) > 1:
                raise InputError(
                    f"{self.name}: a batch is a mapping with labels under {' and '.join(names)}; "
                    "keep one of them"
                )
        elif isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) == 2:
            return batch[0], self._labels(batch[1])
        what = f"a mapping of {', '.join(batch)}" if isinstance(batch, Mapping) else None
        raise InputError(
            f"{self.name}: a batch is {what or _described(batch)}; give (inputs, labels), or a "
            "mapping with `labels` and the network's inputs"
        )

    def _labels(self, given: Any) -> Tensor:
        try:
            return torch.as_tensor(given)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{self.name}: the labels of a batch are {_described(given)} that cannot become a "
                f"tensor: {reason(error)}; give numbers"
            ) from error

    def _sent(self, x: Any) -> Any:
        return pytree.tree_map_only(Tensor, self._sent_one, plain(x))

    def _sent_one(self, x: Tensor) -> Tensor:
        last = self.channels_last and x.dim() == 4
        x = x.to(self.device, non_blocking=True)
        return x.contiguous(memory_format=torch.channels_last) if last else x


def batches_of(source: Any, **options: Any) -> Loader | Batches:
    """What reads a source epoch by epoch: a loader of the library as it is, a `Loader` of a part of
    its data, `Batches` of anything else."""
    if isinstance(source, Samples):
        options.pop("name", None)
        batch_size, train = options.pop("batch_size", 128), options.pop("train", False)
        return Loader(source, batch_size, train=train, **options)
    return source if isinstance(source, Loader | Batches) else Batches(source, **options)


def _mark(y: Tensor, before: int) -> int:
    """A checksum over the labels of an epoch's batches so far; labels on an accelerator, for which
    the host would have to wait, do not count."""
    if y.device.type != "cpu":
        return before
    content = y.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return zlib.crc32(content, before)


def _loader(dataset: Any, batch_size: int, train: bool, name: str) -> DataLoader:
    """Batches of a data set of single samples.

    Raises:
        InputError: it has no length, or is empty.
    """
    try:
        size = len(dataset)
    except (TypeError, NotImplementedError) as error:
        raise InputError(
            f"{name}: {type(dataset).__name__} has no length, which the learning rate's schedule "
            "needs; give a map-style data set, or a list of batches"
        ) from error
    if size == 0:
        raise InputError(f"{name}: there is no sample in it")
    if isinstance(dataset, IterableDataset):  # it has an order of its own
        return DataLoader(dataset, batch_size, drop_last=train and size >= batch_size)
    if hasattr(dataset, "with_format") and getattr(dataset, "format", {}).get("type") is None:
        dataset = dataset.with_format("torch")
    drop_last = train and size >= batch_size
    return DataLoader(dataset, batch_size, shuffle=train, drop_last=drop_last)


def _described(batch: Any) -> str:
    kind = type(batch).__name__
    if isinstance(batch, Tensor):
        return f"a tensor {tuple(batch.shape)}"
    return f"a {kind} of {len(batch)}" if isinstance(batch, Sequence) else f"a {kind}"
