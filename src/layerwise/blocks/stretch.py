"""One block of a network that was cut."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from layerwise.inputs import Inputs

if TYPE_CHECKING:
    from layerwise.blocks.stretches import Stretches

# A parameter's or buffer's place: the module that holds it, and its name there.
Place = tuple[nn.Module, str]


class Stretch(nn.Module):
    """A block of a network that was cut: a stretch of the network's forward.

    It is a module without modules of its own: its parameters and buffers are the network's, under
    the network's names. Called by itself it maps its input to its output (`alone.py`).

    Attributes:
        network: the chain of blocks that it belongs to.
        number: its position in the chain, from 0.
        tops: the outermost modules all of whose calls lie in the block.
        outside: the places of the block's parameters and buffers that no module of `tops` holds,
            because the module that holds them spans several blocks.
        chain: the block as modules called one after the other, if it is nothing else; None
            otherwise.
        reads_inputs: True, because a call may be given the network's inputs.
    """

    network: Stretches
    number: int
    outside: tuple[Place, ...]
    tops: tuple[nn.Module, ...]
    chain: tuple[nn.Module, ...] | None
    reads_inputs = True

    def __init__(
        self,
        network: Stretches,
        number: int,
        tops: Sequence[nn.Module],
        places: Sequence[Place],
        chain: Sequence[nn.Module] | None,
    ):
        super().__init__()
        inside = {m for top in tops for m in top.modules()}
        # Not through `nn.Module.__setattr__`, which would register the network's modules here.
        self.__dict__.update(
            network=network,
            number=number,
            tops=tuple(tops),
            outside=tuple(place for place in places if place[0] not in inside),
            chain=None if chain is None else tuple(chain),
        )

    @property
    def places(self) -> Iterator[Place]:
        """The places of the block's parameters and buffers."""
        owners = self.network.owners
        for top in self.tops:
            for module in top.modules():
                for key in (*module._parameters, *module._buffers):
                    if owners.get((module, key), self.number) == self.number:
                        yield module, key
        yield from self.outside

    def forward(self, h: Tensor, inputs: Inputs = None) -> Tensor:
        """The block's output, (B, ...).

        Args:
            h: its input, (B, ...); for the first block the network's inputs.
            inputs: the network's inputs, if the block reads more of them than its input.

        Raises:
            InputError: the block does not run by itself, or needs the inputs.
        """
        return self.network.alone.run(self.number, h, inputs)

    def call_chain(self, h: Tensor) -> Tensor:
        """The block's output, (B, ...), from calls of the modules of `chain`."""
        assert self.chain is not None
        for module in self.chain:
            h = module(h)
        return h

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The parameters that the block owns; see `named_parameters`."""
        for _, parameter in self.named_parameters(recurse=recurse):
            yield parameter

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that the block owns, under the network's names.

        A parameter that several blocks use belongs to the last of them, where its gradient is
        complete.
        """
        return self._named("_parameters", prefix, recurse, remove_duplicate)

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """The buffers that the block owns, under the network's names."""
        return self._named("_buffers", prefix, recurse, remove_duplicate)

    def _named(
        self, table: str, prefix: str, recurse: bool, once: bool
    ) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        for module, key in self.places if recurse else ():
            tensor = module.__dict__[table].get(key)
            if tensor is None or (once and id(tensor) in seen):
                continue
            seen.add(id(tensor))
            yield (prefix and prefix + ".") + self.network.name_of(module, key), tensor

    def get_parameter(self, target: str) -> nn.Parameter:
        """The parameter of this name in the network."""
        return self.network.model.get_parameter(target)

    def named_modules(  # pyrefly: ignore
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """The block itself, and the modules all of whose calls lie in it."""
        memo = set() if memo is None else memo
        if remove_duplicate and self in memo:
            return
        memo.add(self)
        yield prefix, self
        for top in self.tops:
            inner = (prefix and prefix + ".") + self.network.name_of(top)
            yield from top.named_modules(memo, inner, remove_duplicate)

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        for top in self.tops:
            yield self.network.name_of(top), top

    def state_dict(  # type: ignore[override]
        self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Tensor]:
        """The block's parameters and persistent buffers, under the network's names."""
        found = {} if destination is None else destination
        for name, tensor in self._persistent():
            found[prefix + name] = tensor if keep_vars else tensor.detach()
        return found

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        with torch.no_grad():
            for name, tensor in self._persistent():
                if prefix + name in state_dict:
                    tensor.copy_(state_dict[prefix + name])
                else:
                    missing_keys.append(prefix + name)

    def _persistent(self) -> Iterator[tuple[str, Tensor]]:
        for module, key in self.places:
            tensor = module._parameters.get(key, module._buffers.get(key))
            if tensor is not None and key not in module._non_persistent_buffers_set:
                yield self.network.name_of(module, key), tensor

    def train(self, mode: bool = True) -> Stretch:
        """Set the mode of the modules all of whose calls lie in the block."""
        for top in self.tops:
            top.train(mode)
        return self

    @property
    def training(self) -> bool:  # type: ignore[override]
        return self.network.model.training

    @training.setter
    def training(self, mode: bool) -> None:
        """A block has no mode of its own."""

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the modules all of whose calls lie in the block, each by itself."""
        for top in self.tops:
            top.compile(*args, **kwargs)

    def _apply(self, fn: Any, recurse: bool = True) -> Stretch:
        for top in self.tops:
            top._apply(fn)
        whole = {m for top in self.tops for m in top.modules()}
        with torch.no_grad():
            for module, key in self.places:
                if module in whole:
                    continue
                if (parameter := module._parameters.get(key)) is not None:
                    parameter.data = fn(parameter.data)
                elif (buffer := module._buffers.get(key)) is not None:
                    module._buffers[key] = fn(buffer)
        return self

    def copied(self) -> Stretch:
        """A copy of the block with its own parameters and buffers.

        The rest of the network (the tensors that belong to other blocks) is shared.
        """
        own = {id(t) for t in (*self.parameters(), *self.buffers())}
        whole = (*self.network.parameters(), *self.network.buffers())
        memo: dict[int, Any] = {id(t): t for t in whole if id(t) not in own}
        memo[id(self.network.example)] = self.network.example
        if self.number:
            self.network.check_alone(self.number)
            self.network.reads_inputs(self.number)
        made = copy.deepcopy(self.network, memo)[self.number]
        # A module that the copy becomes part of finds its modules through `tops`. Tensors that no
        # module of `tops` holds are registered on the copy itself.
        inside = {m for top in made.tops for m in top.modules()}
        for module, key in made.places:
            if module not in inside:
                name = made.network.name_of(module, key)
                for table in ("_parameters", "_buffers"):
                    if module.__dict__[table].get(key) is not None:
                        made.__dict__[table][name] = module.__dict__[table][key]
        return made

    def extra_repr(self) -> str:
        return f"{self.network.names[self.number]!r} of {type(self.network.model).__name__}"
