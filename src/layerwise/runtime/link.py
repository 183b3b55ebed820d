"""One-way links: tensors from one process to another, in order and bounded in number.

Messages travel through the memory of the host, by gloo. A receiver takes messages in advance; NCCL
would wait for each of them on the GPU, where everything that waits for the whole device, such as
reading the time at the end of an epoch, would then wait for a message of the next epoch.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from layerwise.errors import LostStage, reason

DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)
# Seconds that another process is given for its own work, such as the pictures of an epoch, even if
# stages give each other less to answer.
PATIENCE_S = 300.0
SLICE_S = 1.0  # waiting is counted in slices: time for which all processes are stopped is none
TENSORS, DIMS = 4, 6  # largest number of tensors in a message, and of dimensions in a tensor
EACH = 3 + DIMS  # dtype, whether channels are last in memory, number of dimensions, sizes
# Marks of a message: more messages follow; training stops after this one; a training pass has no
# more batches; the link is closed.
MORE, LAST, PASSED, CLOSED = range(4)


class Sender:
    """The sending end of a link: a thread sends while the stage computes.

    Args:
        to: the rank that receives.
        group: a process group of gloo that only this link uses.
        depth: largest number of messages that wait to be sent.
        timeout_s: seconds to wait for room before the receiver counts as hung. The receiver may
            have work of its own to do, so at least `PATIENCE_S` are given.
    """

    def __init__(
        self, to: int, group: dist.ProcessGroup, depth: int = 2, timeout_s: float = PATIENCE_S
    ):
        self.to, self.group = to, group
        self.timeout_s = max(timeout_s, PATIENCE_S)
        self._given: queue.Queue[tuple[tuple[Tensor, ...], int]] = queue.Queue(depth)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._send_all, daemon=True)
        self._thread.start()

    def send(self, *tensors: Tensor, mark: int = MORE) -> None:
        """Send tensors as one message, with a mark. Waits only while `depth` messages wait to be
        sent: a slow stage then holds up the stages before it, so memory is bounded.

        Raises:
            LostStage: the other process is gone, or has taken nothing for `timeout_s`.
        """
        for _ in slices(self.timeout_s):
            if self.offer(*tensors, mark=mark, patience_s=SLICE_S):
                return
        self._raise_hung()

    def offer(self, *tensors: Tensor, mark: int = MORE, patience_s: float = 0.0) -> bool:
        """Send, or give up if there is no room within `patience_s` seconds; return whether the
        message was sent.

        Raises:
            LostStage: the other process is gone.
        """
        self._raise()
        try:
            self._given.put((tensors, mark), block=patience_s > 0, timeout=patience_s or None)
        except queue.Full:
            return False
        return True

    def close(self) -> None:
        """Close the link, and wait until the other side has received everything.

        Raises:
            LostStage: the other process is gone, or has taken nothing for `timeout_s`.
        """
        self.send(mark=CLOSED)
        for _ in slices(self.timeout_s):
            self._thread.join(SLICE_S)
            if not self._thread.is_alive():
                break
        else:
            self._raise_hung()
        self._raise()

    def _raise_hung(self) -> NoReturn:
        raise LostStage(f"rank {self.to} is lost: it took nothing for {self.timeout_s:g} s")

    def _raise(self) -> None:
        if self._error is not None:
            raise LostStage(f"rank {self.to} is lost: {_why(self._error)}") from self._error

    def _send_all(self) -> None:
        mark = MORE
        try:
            while mark != CLOSED:
                tensors, mark = self._given.get()
                self._send(tensors, mark)
        except Exception as error:  # the stage learns of it when it sends
            self._error = error

    def _send(self, tensors: tuple[Tensor, ...], mark: int) -> None:
        header = torch.zeros(2 + TENSORS * EACH, dtype=torch.int64)
        header[:2] = torch.tensor([mark, len(tensors)])
        parts = [header]
        for k, tensor in enumerate(tensors):
            last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
            plain = tensor.permute(0, 2, 3, 1) if last else tensor.contiguous()
            about = [DTYPES.index(plain.dtype), last, plain.dim(), *plain.shape]
            header[2 + k * EACH :][: len(about)] = torch.tensor(about)
            parts.append(plain)
        for part in parts:
            dist.send(part.cpu(), self.to, group=self.group)


class Receiver:
    """The receiving end of a link: a thread receives while the stage computes.

    Args:
        source: the rank that sends.
        group: a process group of gloo that only this link uses.
        depth: largest number of messages received in advance; 0 for no limit.
        device: the device to which tensors are moved.
        timeout_s: seconds to wait for a message before its sender counts as hung.
        later_s: further seconds to wait, so that a process nearer to the hung one names it first.
    """

    def __init__(
        self,
        source: int,
        group: dist.ProcessGroup,
        depth: int = 2,
        device: torch.device | str = "cpu",
        timeout_s: float = 600.0,
        later_s: float = 0.0,
    ):
        self.source, self.group, self.device = source, group, torch.device(device)
        self.timeout_s, self.later_s = timeout_s, later_s
        self._taken: queue.Queue[tuple[list[Tensor], int] | Exception] = queue.Queue(depth)
        self._thread = threading.Thread(target=self._take_all, daemon=True)
        self._thread.start()

    def receive(self) -> tuple[list[Tensor], int]:
        """The next message: its tensors and its mark.

        Raises:
            LostStage: the other process is gone, or has sent nothing for `timeout_s`.
        """
        for wait_s in slices(self.timeout_s + self.later_s):
            with contextlib.suppress(queue.Empty):
                taken = self._taken.get(timeout=wait_s)
                break
        else:
            raise LostStage(f"rank {self.source} is lost: it sent nothing for {self.timeout_s:g} s")
        if isinstance(taken, Exception):
            raise LostStage(f"rank {self.source} is lost: {_why(taken)}") from taken
        return taken

    def ready(self) -> bool:
        """Whether `receive` would not wait."""
        return not self._taken.empty()

    def close(self) -> None:
        """Wait until the other side has closed the link; what it still sends is dropped. A thread
        that still received at the end of the process would end it with SIGABRT.

        Raises:
            LostStage: as `receive`.
        """
        while self.receive()[1] != CLOSED:
            pass
        self._thread.join()

    def _take_all(self) -> None:
        try:
            mark = MORE
            while mark != CLOSED:
                tensors, mark = self._take()
                self._taken.put((tensors, mark))
        except Exception as error:  # the stage learns of it when it receives
            self._taken.put(error)

    def _take(self) -> tuple[list[Tensor], int]:
        header = torch.zeros(2 + TENSORS * EACH, dtype=torch.int64)
        dist.recv(header, self.source, group=self.group)
        mark, count, *about = header.tolist()
        tensors = []
        for k in range(count):
            kind, last, dims, *shape = about[k * EACH : (k + 1) * EACH]
            tensor = torch.empty(shape[:dims], dtype=DTYPES[kind])
            dist.recv(tensor, self.source, group=self.group)
            tensors.append((tensor.permute(0, 3, 1, 2) if last else tensor).to(self.device))
        return tensors, mark


def slices(wait_s: float) -> Iterator[float]:
    """Divide a time to wait into slices of at most `SLICE_S`, in seconds.

    If all processes are stopped and later continued, as by Ctrl-Z at a terminal, that counts as one
    slice and not as time in which another process has not answered.
    """
    while wait_s > 0:
        yield min(wait_s, SLICE_S)
        wait_s -= SLICE_S


@contextlib.contextmanager
def losing(who: str) -> Iterator[None]:
    """Within, an error of a collective is raised as the loss of another process.

    Raises:
        LostStage: as said, with `who` as the process that is lost.
    """
    try:
        yield
    except RuntimeError as error:
        raise LostStage(f"{who} is lost: {_why(error)}") from error


def _why(error: Exception) -> str:
    """What happened to the other process, according to the error of the communication library."""
    text = str(error).lower()
    gone = any(word in text for word in ("closed", "reset", "refused", "broken pipe"))
    return "it closed the connection" if gone else reason(error)
