"""Run a network's recurrent layers from a given state, and read the state in which they end.

B samples of a batch, S numbers in the state of all layers of one sample.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from layerwise.errors import InputError


class Recurrent:
    """The recurrent layers of a network: `nn.RNN`, `nn.LSTM`, `nn.GRU`.

    The states of all layers are one tensor, (B, S): layer by layer, of an LSTM first h, then c.

    Args:
        network: the network.
        asked_by: the call, for errors.

    Attributes:
        size: S; 0 if there is no such layer.

    Raises:
        InputError: a layer is bidirectional, so its state at the end of a window depends on no
            earlier window alone.
    """

    def __init__(self, network: nn.Module, asked_by: str):
        self.asked_by = asked_by
        self.layers = [m for m in network.modules() if isinstance(m, nn.RNNBase)]
        for layer in self.layers:
            if layer.bidirectional:
                raise InputError(
                    f"{asked_by}: a recurrent layer of the network is bidirectional, and reads "
                    "each window from its end, too; give a network that reads in one direction"
                )
        self.sizes = [[layer.num_layers * size for size in _sizes(layer)] for layer in self.layers]
        self.size = sum(map(sum, self.sizes))

    @contextlib.contextmanager
    def started(self, state: Tensor | None) -> Iterator[list[Tensor]]:
        """Within, a forward of the network begins with a state.

        Args:
            state: (B, S); None for the state that the network begins with by itself.

        Yields:
            A list that holds, after a forward, the state at its end: (B, S), with its graph.

        Raises:
            InputError: when the context ends: a layer was not called exactly once.
        """
        before = None if state is None else self._parts(state)
        ends: list[list[Tensor]] = [[] for _ in self.layers]
        found: list[Tensor] = []
        hooks = []
        for k, layer in enumerate(self.layers):
            if before is not None:
                hooks.append(layer.register_forward_pre_hook(_given(before[k]), with_kwargs=True))
            hooks.append(layer.register_forward_hook(_kept(ends[k])))
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()
        if any(len(end) != 1 for end in ends):
            raise InputError(
                f"{self.asked_by}: a forward of the network calls its recurrent layers "
                f"{[len(end) for end in ends]} times; a state can be carried if each is called once"
            )
        found.append(torch.cat([end for (end,) in ends], 1))

    def _parts(self, state: Tensor) -> list[Any]:
        """The state of each layer, as the layer takes it."""
        parts = iter(state.split([size for sizes in self.sizes for size in sizes], 1))
        found: list[Any] = []
        for layer, sizes in zip(self.layers, self.sizes, strict=True):
            # (B, L D) -> (L, B, D)
            own = [next(parts).unflatten(1, (layer.num_layers, -1)) for _ in sizes]
            of_layer = tuple(part.transpose(0, 1).contiguous() for part in own)
            found.append(of_layer if len(of_layer) > 1 else of_layer[0])
        return found


def _sizes(layer: nn.RNNBase) -> list[int]:
    """The features of each tensor of a layer's state: h, and c of an LSTM."""
    output = layer.proj_size or layer.hidden_size
    return [output, layer.hidden_size] if isinstance(layer, nn.LSTM) else [output]


def _given(state: Any) -> Any:
    """A hook with which a layer begins with this state."""

    def hook(layer: nn.Module, args: Any, kwargs: Any) -> Any:
        return args[:1], {**kwargs, "hx": state}

    return hook


def _kept(ends: list[Tensor]) -> Any:
    """A hook that appends the state in which a layer ends, (B, L D) of each of its tensors."""

    def hook(layer: nn.Module, args: Any, output: Any) -> None:
        _, state = output
        parts = state if isinstance(state, tuple) else (state,)
        ends.append(torch.cat([part.transpose(0, 1).flatten(1) for part in parts], 1))

    return hook
