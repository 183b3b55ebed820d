"""The two sides of a stage: where its batches come from, and where its outputs go."""

from __future__ import annotations

import enum
from collections import deque

import torch.distributed as dist
from torch import Tensor

from layerwise.objectives.batch import Batch
from layerwise.rules.base import Done, LocalRule, Rule
from layerwise.runtime.control import device_of, new_group
from layerwise.runtime.link import LAST, MORE, PASSED, Receiver, Sender
from layerwise.runtime.replay import Replay

NEXT_STAGE_S = 2.0  # seconds by which each stage waits longer for a message than the one before


class Progress(enum.Enum):
    """How far a training pass has come in a stage that replays batches.

    A training pass is the training between two evaluations. Without replay a stage receives one
    message per step, so it needs no state. With replay it does not know how many messages a pass
    has, so the stage before ends them with a mark:

        NONE --(first step)--> OPEN --(mark PASSED or LAST received)--> ENDED
          ^                      |                                        |
          +--(`finish_pass`)-----+----------------------------------------+

    The first stage receives nothing, so it is never in ENDED.
    """

    NONE = enum.auto()  # no pass is under way
    OPEN = enum.auto()  # this stage trains, and the stage before may send more batches
    ENDED = enum.auto()  # this stage trains on kept batches: the stage before has finished


class Upstream:
    """The side of a stage from which its batches come: its own data in the first stage, the stage
    before in every other.

    Args:
        link: receives the outputs of the stage before; None in the first stage.
        back: sends gradients to the stage before; None if the rule sends none.
        replay: number of batches that are kept to be used again; 0 to use every batch once.

    Attributes:
        first: whether this is the first stage.
        stopping: whether training stops after the newest batch. The first stage decides, because it
            is ahead of the others; its decision travels with the batches.
    """

    def __init__(self, link: Receiver | None, back: Sender | None, replay: int):
        self.first, self.stopping = link is None, False
        self._link, self._back = link, back
        self._replay: Replay[list[Tensor]] | None = Replay(replay) if replay else None
        self._progress = Progress.NONE

    def begin_step(self) -> None:
        """A training step begins, and with the first one a training pass."""
        if self._progress is Progress.NONE:
            self._progress = Progress.OPEN

    def take(self, own: Tensor | None, stops: bool) -> list[Tensor]:
        """The next input of this stage, and the tensors that travelled with it.

        Args:
            own: the input of the first stage; other stages do not read it.
            stops: whether training stops after this batch; read in the first stage only.

        Raises:
            LostStage: the stage before is gone or silent.
        """
        if self._link is None:
            assert own is not None
            self.stopping = stops
            return [own]
        tensors, mark = self._link.receive()
        self.stopping = mark == LAST
        return tensors

    def take_replayed(self) -> list[Tensor]:
        """The tensors of the next batch under replay: what has arrived is kept, and the least used
        of the kept batches is taken. Waits only if no batch is kept yet.

        Raises:
            LostStage: the stage before is gone or silent.
        """
        assert self._link is not None
        assert self._replay is not None
        # A stage before that has finished its pass may wait for the others: it sends nothing more.
        while self._progress is Progress.OPEN and (not len(self._replay) or self._link.ready()):
            self._keep_next()
        return self._replay.take()

    def keep_arrived(self) -> None:
        """Under replay, receive those messages of the training pass that are here."""
        assert self._replay is not None
        while self._link is not None and self._progress is Progress.OPEN and self._link.ready():
            self._keep_next()

    def finish_pass(self) -> bool:
        """Receive the rest of the stage before's pass, before a collective step; return whether a
        pass was under way. Without replay nothing is left to receive, and it returns False."""
        if self._replay is None or self._progress is Progress.NONE:
            return False
        while self._link is not None and self._progress is Progress.OPEN:
            self._keep_next()
        self._progress = Progress.NONE
        return True

    def send_back(self, gradient: Tensor | None) -> None:
        """Send `Done.back` of this stage's first block to the stage before, if the rule does so. A
        message without a tensor says that this batch has none."""
        if self._back is not None:
            self._back.send(*([] if gradient is None else [gradient]))

    def close(self) -> None:
        """Wait until the stage before has what was sent back, and has closed its link."""
        if self._back is not None:
            self._back.close()
        if self._link is not None:
            self._link.close()

    def _keep_next(self) -> None:
        """Receive one message of a training pass."""
        assert self._link is not None
        assert self._replay is not None
        tensors, mark = self._link.receive()
        if tensors:
            self._replay.put(tensors)
        if mark in (PASSED, LAST):
            self._progress = Progress.ENDED
        self.stopping = mark == LAST


class Downstream:
    """The side of a stage to which its outputs go: the stage after.

    Under `Needs.NEXT` the stage after also sends gradients back. They arrive later, and this stage
    does not wait for them: a block's step waits in a queue until its gradient is here.

    Args:
        link: sends outputs to the stage after.
        back: receives gradients from the stage after; None if the rule sends none.
        rule: the rule.
        block: number of this stage's last block.
    """

    def __init__(self, link: Sender, back: Receiver | None, rule: Rule, block: int):
        self._link, self._back, self._rule, self._block = link, back, rule, block
        self._waiting: deque[tuple[Done, Batch]] = deque()  # oldest first, as gradients arrive

    def give(self, *tensors: Tensor, stopping: bool, droppable: bool = False) -> None:
        """Send an output and what travels with it.

        Args:
            tensors: the message.
            stopping: whether training stops after this batch.
            droppable: leave the message out if the stage after has no room for it, instead of
                waiting. The last message before training stops is never left out.

        Raises:
            LostStage: the stage after is gone.
        """
        if droppable and not stopping:
            self._link.offer(*tensors, mark=MORE)
        else:
            self._link.send(*tensors, mark=LAST if stopping else MORE)

    def end_pass(self, stopping: bool) -> None:
        """Tell the stage after that this training pass has no more batches."""
        self._link.send(mark=LAST if stopping else PASSED)

    def learn_late(self, done: Done, batch: Batch) -> None:
        """Queue the late step of this stage's last block, and make those late steps, of this batch
        or of earlier ones, for which the gradient has arrived."""
        if self._back is not None:
            # By then the weights will have moved, so the graph of `kept` is of no use.
            self._waiting.append((done._replace(carry=(), back=None, kept=None), batch))
            self._learn_waiting(wait=False)

    def receive_back(self) -> Tensor:
        """The next gradient from the stage after; waits for it.

        Raises:
            LostStage: the stage after is gone or silent.
        """
        assert self._back is not None
        [gradient], _ = self._back.receive()
        return gradient

    def close(self) -> None:
        """Make the late steps that are left, and wait until the stage after has every output."""
        if self._back is not None:
            self._learn_waiting(wait=True)
        self._link.close()

    def closed(self) -> None:
        """Wait until the stage after has closed its link back."""
        if self._back is not None:
            self._back.close()

    def _learn_waiting(self, wait: bool) -> None:
        assert self._back is not None
        while self._waiting and (wait or self._back.ready()):
            (done, batch), (back, _) = self._waiting.popleft(), self._back.receive()
            if back:
                assert isinstance(self._rule, LocalRule)
                self._rule.learn(self._block, done, back[0], batch)


def connect(
    rule: Rule,
    block: int,
    stages: int,
    replicas: int,
    backward: bool,
    depth: int,
    replay: int,
    timeout_s: float,
) -> tuple[Upstream, Downstream | None]:
    """Link this process to the same replica of the stage before and of the stage after. Every
    process calls this, because every process takes part in making every group.

    Args:
        rule: the rule.
        block: number of this stage's last block.
        stages: number of stages.
        replicas: number of replicas of each stage.
        backward: whether gradients travel back between stages.
        depth: largest number of batches on their way between two stages, on either side.
        replay: number of batches that a stage keeps; 0 for none.
        timeout_s: seconds to wait for a message before its sender counts as hung.

    Returns:
        Both sides of this stage; the last stage has no stage after it.
    """
    rank = dist.get_rank()
    device = device_of(rule)
    link: Receiver | None = None
    back: Sender | None = None
    after: Downstream | None = None
    for left in range((stages - 1) * replicas):  # the same order in every process
        right = left + replicas
        pair = [left, right]
        forward = new_group(pair, "gloo", patient=True)
        returning = new_group(pair, "gloo", patient=True) if backward else None
        if rank == left:
            sender = Sender(right, forward, depth, timeout_s)
            # Unbounded here: the outputs on their way bound the number of gradients.
            late = None if returning is None else Receiver(right, returning, 0, device, timeout_s)
            after = Downstream(sender, late, rule, block)
        if rank == right:
            later_s = NEXT_STAGE_S * (left // replicas)
            link = Receiver(left, forward, depth, device, timeout_s, later_s)
            back = None if returning is None else Sender(left, returning, depth, timeout_s)
    return Upstream(link, back, replay), after
