"""How many bytes of tensors are alive at once, on any device."""

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
        bytes: alive then, above the baseline.
        activations: of these, saved activations and temporaries, bytes.
        gradients: of these, in the storage of a parameter's `.grad`, bytes.
        optimizer: of these, optimizer state, bytes.
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
    """Follow every storage that is born inside the `with`, from its birth to its death.

    Counted: the storage of every strided tensor that an operator returns, once however many views
    it has, from the operator that made it until its last reference is gone; so activations saved
    for the way back, temporaries between operators, gradients, and what `count` is told of. Sizes
    are the tensors' own, without an allocator's rounding or fragmentation.

    Not counted: storages that existed before (parameters, buffers, the batch: the baseline) unless
    `count` is told of them; what a kernel allocates and frees within itself (a convolution's
    workspace, reordered weights); sparse and opaque layouts; memory that is not a tensor's.

    A storage has one kind for its whole life: one that ends up in a parameter's `.grad` is a
    gradient from the kernel that computed it on. Optimizer state made inside the `with` has to be
    passed to `count` before it is left.

    Args:
        parameters: whose gradients to tell apart.
    """

    def __init__(self, parameters: Iterable[nn.Parameter] = ()):
        super().__init__()
        self._parameters = [p for p in parameters if p.requires_grad]
        self._storages: dict[int, _Storage] = {}  # alive, by the address of their StorageImpl
        self._events: list[tuple[_Storage, int]] = []  # bytes more (or fewer), in order
        self._hooks: list[RemovableHandle] = []

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
                    self._events.append((known, grown))
            elif storage._cdata not in given:  # neither a view nor in place on the baseline's
                self._born(storage, "activations")
        return result

    def count(self, kind: Kind, tensors: Iterable[Tensor]) -> None:
        """Count the storages of `tensors` as of this kind, whether or not they are known yet."""
        for storage in _storages(list(tensors)):
            known = self._storages.get(storage._cdata)
            if known is None:
                self._born(storage, kind)
            else:
                known.kind = kind

    def peak(self, *kinds: Kind) -> Peak:
        """The most bytes of these kinds (by default of all) that were alive at once."""
        live = dict.fromkeys(("activations", "gradients", "optimizer"), 0)
        most, at_most = 0, dict(live)
        for storage, change in self._events:
            live[storage.kind] += change
            total = sum(live[kind] for kind in kinds or live)
            if total > most:
                most, at_most = total, dict(live)
        return Peak(most, **at_most)

    @property
    def now(self) -> int:
        """Alive now, bytes above the baseline."""
        return sum(storage.bytes for storage in self._storages.values())

    def _born(self, storage: torch.UntypedStorage, kind: Kind) -> None:
        address = storage._cdata

        def died(_: weakref.ref) -> None:
            gone = self._storages.pop(address)
            self._events.append((gone, -gone.bytes))

        born = _Storage(storage.nbytes(), kind, weakref.ref(storage, died))
        self._storages[address] = born
        self._events.append((born, born.bytes))

    def _accumulated(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.count("gradients", [parameter.grad])


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
            yield leaf.untyped_storage()
