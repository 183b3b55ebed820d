"""Counting the bytes of tensors that are alive at the same time, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

Kind = Literal["activations", "gradients", "optimizer"]


@dataclass(frozen=True)
class Peak:
    """The moment at which the most bytes were alive.

    Attributes:
        bytes: alive at that moment, above the baseline.
        activations: the part of `bytes` in saved activations and temporaries.
        gradients: the part of `bytes` in the storages of parameters' `.grad`.
        optimizer: the part of `bytes` in optimizer state.
    """

    bytes: int
    activations: int
    gradients: int
    optimizer: int


@dataclass(eq=False)
class _Storage:
    bytes: int
    kind: Kind
    alive: weakref.ref


class LiveBytes(TorchDispatchMode):
    """A context that follows every storage created inside it, from creation to release.

    Counted is the storage of every strided tensor that an operator returns, from that operator
    until its last reference is gone, once however many views it has. These are activations saved
    for the backward pass, temporaries between operators, gradients, and the tensors passed to
    `count`. Sizes are the tensors' own, without an allocator's rounding or fragmentation.

    Not counted are storages that existed before (the baseline: parameters, buffers, the batch),
    unless they are passed to `count`; memory that a kernel allocates and frees itself (a
    convolution's workspace, reordered weights); sparse and opaque layouts; and memory outside
    tensors.

    A storage has one kind for its whole life: if it ends up in a parameter's `.grad`, it is a
    gradient from its creation on. Pass optimizer state that is created inside the context to
    `count` before you leave it.

    Args:
        parameters: parameters whose gradients are counted as such.
    """

    def __init__(self, parameters: Iterable[nn.Parameter] = ()):
        super().__init__()
        self._parameters = [p for p in parameters if p.requires_grad]
        self._storages: dict[int, _Storage] = {}  # alive, by the address of their StorageImpl
        self.peaks = True  # whether the peak may be now
        # Bytes more (or fewer), in order, and whether the peak may be there.
        self._events: list[tuple[_Storage, int, bool]] = []
        self._hooks: list[RemovableHandle] = []

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Whether code that `torch.compile` has compiled still runs as compiled."""
        return True

    def __enter__(self) -> LiveBytes:
        self._hooks = [
            p.register_post_accumulate_grad_hook(self._accumulated) for p in self._parameters
        ]
        self.count("gradients", (p.grad for p in self._parameters if p.grad is not None))
        return super().__enter__()

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        super().__exit__(exc_type, exc_val, exc_tb)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = {s._cdata for s in _storages((args, kwargs))}
        for storage in _storages(result):
            known = self._storages.get(storage._cdata)
            if known is not None:
                if (grown := storage.nbytes() - known.bytes) != 0:  # resized in place
                    known.bytes += grown
                    self._events.append((known, grown, self.peaks))
            elif (
                storage._cdata not in given
            ):  # neither a view nor an in-place result of the baseline
                self._born(storage, "activations")
        return result

    def count(self, kind: Kind, tensors: Iterable[Tensor]) -> None:
        """Count the storages of `tensors` as this kind, whether or not they are counted already."""
        for storage in _storages(list(tensors)):
            known = self._storages.get(storage._cdata)
            if known is None:
                self._born(storage, kind)
            else:
                known.kind = kind

    def peak(self, *kinds: Kind) -> Peak:
        """The moment at which the most bytes of these kinds (by default, of all) were alive."""
        live = dict.fromkeys(("activations", "gradients", "optimizer"), 0)
        most, at_most = 0, dict(live)
        for storage, change, seen in self._events:
            live[storage.kind] += change
            total = sum(live[kind] for kind in kinds or live)
            if seen and total > most:
                most, at_most = total, dict(live)
        return Peak(most, **at_most)

    @property
    def now(self) -> int:
        """Bytes alive now, above the baseline."""
        return sum(storage.bytes for storage in self._storages.values())

    def _born(self, storage: torch.UntypedStorage, kind: Kind) -> None:
        address = storage._cdata

        def died(_: weakref.ref) -> None:
            gone = self._storages.pop(address)
            self._events.append((gone, -gone.bytes, False))

        born = _Storage(storage.nbytes(), kind, weakref.ref(storage, died))
        self._storages[address] = born
        self._events.append((born, born.bytes, self.peaks))

    def _accumulated(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.count("gradients", [parameter.grad])


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
            yield leaf.untyped_storage()
