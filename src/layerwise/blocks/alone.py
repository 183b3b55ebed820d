"""A block by itself: run again, run on another input, or run in a process of its own.

The network is called as usual, but the forward passes over the modules of earlier blocks, begins
at the block's boundary with the input that it is given, and is given up where the block ends
(`PausedForward` with `at`). This file decides which modules are passed over, with which inputs the
network is called, and whether the block then computes the same as in the network's own forward.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from layerwise.blocks.passes import PausedForward
from layerwise.blocks.placeholders import ModuleCall, Placeholder, for_rows, record_placeholders
from layerwise.blocks.unchanged import buffer_versions, seed, unchanged
from layerwise.errors import InputError, reason
from layerwise.inputs import Inputs, first_rows, leading, plain, signature

if TYPE_CHECKING:
    from layerwise.blocks.stretches import Stretches

NEEDS_MORE = "it needs more of earlier blocks than its input"
Recorded = dict[ModuleCall, Placeholder]
SIGNATURES = 64  # kinds of batches (shapes, types) whose placeholders are kept


class Alone:
    """Runs blocks of a network by themselves.

    Attributes:
        on_meta: copies on the meta device of modules that are passed over, in a process that does
            not have their weights. They only tell the shapes of the modules' outputs.
        moving_buffers: by block, the buffers (module, name) outside of the block that a forward
            changes before the block begins.
    """

    def __init__(self, network: Stretches):
        self.network = network
        self.on_meta: dict[nn.Module, nn.Module] = {}
        self.moving_buffers: dict[int, list[tuple[nn.Module, str]]] = {}
        self._passed: dict[int, frozenset[nn.Module]] = {}
        self._placeholders: dict[Any, dict[ModuleCall, Placeholder]] = {}
        # By kind of inputs, the placeholders of two and three samples if they tell all others.
        self._two_and_three: dict[Any, tuple[Recorded, Recorded] | None] = {}
        self._differs: dict[int, str] = {}  # by block, why it differs alone; "" if it does not
        self._reads: dict[int, Any] = {}

    def run(self, k: int, h: Any, inputs: Inputs = None) -> Tensor:
        """Block k's output, (B, ...); no other block runs.

        Args:
            k: the number of the block.
            h: its input, (B, ...); for the first block the network's inputs.
            inputs: the network's inputs, for a block that reads them (`reads_inputs`).

        Raises:
            InputError: the block reads `inputs` and has none; it does not run by itself.
        """
        if k:
            self.check(k)
            inputs = self.inputs_for(k, h, inputs)
        forward = PausedForward(self.network, inputs, k)
        try:
            return forward.run(h)
        finally:
            forward.close()

    def inputs_for(self, k: int, h: Tensor, inputs: Inputs) -> Inputs:
        """The inputs with which the network is called to run block k on h, (B, ...).

        Raises:
            InputError: the block reads the network's inputs, and `inputs` are none or have another
                number of rows than h.
        """
        if inputs is not None and len(leading(inputs)) == len(h):
            return inputs
        if self.reads_inputs(k):
            had = "none" if inputs is None else f"{len(leading(inputs))} rows"
            raise InputError(
                f"block {self.network.names[k]!r} of {type(self.network.model).__name__} reads the "
                f"network's inputs as well as its own input of {len(h)} rows, and got {had}; give "
                f"them: blocks[{k}](h, inputs)"
            )
        return self.network.zeros(len(h), h)

    def reads_inputs(self, k: int) -> bool:
        """Whether block k > 0 depends on the network's inputs other than through its own input."""
        if k not in self._reads:
            self._reads[k] = not isinstance(self.network.example, Tensor)
            if not self._reads[k]:
                zeros = pytree.tree_map_only(
                    Tensor, torch.zeros_like, plain(self.network.example_here())
                )
                self._compare(zeros, [k], self._reads)
        return bool(self._reads[k])

    def check(self, k: int) -> None:
        """Check that block k runs by itself. The first call checks all blocks.

        Raises:
            InputError: it does not run, or computes something else than in the network's forward.
        """
        if k and k not in self._differs:
            blocks = range(1, len(self.network))
            self._compare(self.network.example_here(), blocks, self._differs)
        if why := self._differs.get(k):
            raise InputError(
                f"{type(self.network.model).__name__}: block {self.network.names[k]!r} does not "
                f"run by itself ({why}), but stages and rules that run blocks again need that; cut "
                "elsewhere, or take a rule that runs blocks in order, such as DGL"
            )

    def passed_over(self, k: int) -> frozenset[nn.Module]:
        """The modules that need not run for block k > 0 to begin.

        These are the outermost modules all of whose calls lie before block k and return only
        tensors with a gradient. Of such tensors only the block's input crosses into the block.
        """
        if k not in self._passed:
            begins = self.network.boundaries[k - 1].first_event_after
            tables = self.network.tables[k - 1]
            free: dict[nn.Module, bool] = {}
            for c in self.network.calls:
                # A table (made of parameters alone) that crosses into the block must be computed.
                makes_table = any(c.begin_time <= n < c.end_time or n in c.made for n in tables)
                unneeded = c.ends < begins and c.only_gradients and not makes_table
                free[c.module] = free.get(c.module, True) and unneeded
            found = {module for module, yes in free.items() if yes}
            inner = {m for module in found for m in module.modules() if m is not module}
            self._passed[k] = frozenset(found - inner)
        return self._passed[k]

    def placeholders(self, inputs: Inputs) -> dict[ModuleCall, Placeholder]:
        """Placeholders for the outputs of passed-over modules, found once for each kind of batch.

        They have the shapes of a forward on `inputs`.
        """
        if self.on_meta:
            return {}
        key = signature(inputs)
        if key not in self._placeholders:
            if len(self._placeholders) >= SIGNATURES:
                self._placeholders.pop(next(iter(self._placeholders)))
            found = self._scaled(inputs)
            self._placeholders[key] = self._recorded(inputs) if found is None else found
        return self._placeholders[key]

    def _recorded(self, inputs: Inputs) -> dict[ModuleCall, Placeholder]:
        passed = set().union(*(self.passed_over(b.number) for b in self.network.boundaries))
        with _disable_current_modes():  # the step's counters and caches do not see a trial
            return record_placeholders(self.network.model, inputs, passed)

    def _scaled(self, inputs: Inputs) -> dict[ModuleCall, Placeholder] | None:
        """The placeholders without a recording, which takes a whole forward; None if that cannot
        be.

        They follow from recordings of two and three samples. The first batch of more samples is
        recorded as well, to see whether they do. (`EarlyExit` gives batches of many sizes.)
        """
        rows = len(leading(inputs))
        if rows <= 3:
            return None
        few = [first_rows(inputs, n) for n in (2, 3)]
        kind = signature(few[0])
        if kind not in self._two_and_three:
            if len(self._two_and_three) >= SIGNATURES:
                self._two_and_three.clear()
            self._two_and_three[kind] = None
            if any(len(leading(x)) != n for x, n in zip(few, (2, 3), strict=True)):
                return None
            exact = self._recorded(inputs)
            with contextlib.suppress(Exception):  # a network for whole batches only
                two, three = map(self._recorded, few)
                if for_rows(two, three, rows) == exact:
                    self._two_and_three[kind] = two, three
            return exact
        known = self._two_and_three[kind]
        return None if known is None else for_rows(*known, rows)

    def prepare_for_stage(self, first: int) -> frozenset[nn.Module]:
        """Make `first` the first block whose weights are needed here.

        Returns:
            The modules of earlier blocks. Their weights are not used any more.

        Raises:
            InputError: the block does not run by itself.
        """
        if not first:
            return frozenset()
        self.check(first)
        self.reads_inputs(first)  # with all weights still here
        passed = self.passed_over(first)
        self.on_meta = {module: copy.deepcopy(module).to("meta") for module in passed}
        return passed

    def _compare(self, inputs: Inputs, blocks: Iterable[int], differs: dict[int, Any]) -> None:
        """Run blocks by themselves on the example and compare them with the network's forward.

        Args:
            inputs: the network's inputs when a block runs by itself.
            blocks: the numbers of the blocks.
            differs: gets, by block, why its output is not the same; "" if it is.
        """
        example, wanted = self.network.example_here(), set(blocks)
        device = leading(example).device
        for k in wanted:
            differs[k] = ""  # no check within the check
        with _disable_current_modes(), unchanged(self.network.model), torch.no_grad():
            self.network.model.eval()
            with self.network.passes(example) as passes:
                h = example
                for k in range(max(wanted) + 1):
                    start = h.clone() if k in wanted else h
                    seed(device)
                    h = passes.run(k, h)
                    if k not in wanted:
                        continue
                    expected = h.clone()
                    try:
                        seed(device)
                        with contextlib.closing(PausedForward(self.network, inputs, k)) as forward:
                            found = forward.run(start.clone())
                        same = found.shape == expected.shape and torch.equal(found, expected)
                        differs[k] = "" if same else NEEDS_MORE
                    except Exception as error:
                        differs[k] = f"it raises {type(error).__name__}: {reason(error)}"
                    if not differs[k]:
                        self._find_moving_buffers(k, start, inputs)

    def _find_moving_buffers(self, k: int, start: Tensor, inputs: Inputs) -> None:
        """Set `moving_buffers[k]`, from a run of the block in train mode."""
        model = self.network.model
        own = {m for top in self.network[k].tops for m in top.modules()}
        others = [m for m in model.modules() if m not in own]
        before = buffer_versions(others)
        if not before:
            return
        model.train()
        with (
            contextlib.suppress(Exception),
            contextlib.closing(PausedForward(self.network, inputs, k)) as forward,
        ):
            forward.run(start)
        model.eval()
        after = buffer_versions(others)
        self.moving_buffers[k] = [place for place, v in before.items() if after.get(place) != v]
