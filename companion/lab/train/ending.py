"""How a run ends that does not end well: one sentence, said by one worker, with the command that goes on."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

MODULE = "companion.lab.train"


class Ending:
    """Says once, for all workers, why the run has ended.

    Under torchrun the first worker that has something to say says it: the store that torchrun keeps for its workers
    counts who asks. Each worker connects before anything can go wrong.

    Args:
        arguments: of the command line.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.arguments = arguments
        self.checkpoint: Path | None = None
        self._store = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            self._store = dist.TCPStore(*where, is_master=False, timeout=timedelta(seconds=60))  # type: ignore[attr-defined]

    @property
    def command(self) -> str:
        """What has to be typed to go on."""
        world, here = (os.environ.get(name, "1") for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        if world != here:
            return "the same torchrun command on every machine"
        head = f"torchrun --standalone --nproc_per_node={here}" if "WORLD_SIZE" in os.environ else "python"
        return f"`{head} -m {MODULE} {shlex.join(self.arguments)}`"

    def error(self, what: str) -> None:
        """Say what went wrong, on stderr, unless another worker has said something."""
        if self._first():
            worker = f" (worker {os.environ['RANK']} of {os.environ['WORLD_SIZE']})" if self._store else ""
            print(f"\nerror{worker}: {what}", file=sys.stderr, flush=True)

    def stopped(self, why: str) -> None:
        """Say why the run was stopped, which checkpoint there is, and how to go on."""
        if self.checkpoint is None or not self.checkpoint.exists():
            self.error(f"stopped: {why}; no checkpoint was written yet, start anew with {self.command}")
        else:
            self.error(f"stopped: {why}; the last checkpoint is {self.checkpoint}, go on from it with {self.command}")

    @contextmanager
    def terminated(self) -> Iterator[None]:
        """While this lasts, SIGTERM is answered by `stopped` and the end of the process, whatever it is busy with.

        A worker that waits for another one inside a collective runs no Python: a thread has to answer for it.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        reads, writes = os.pipe()
        os.set_blocking(writes, False)
        handler = signal.signal(signal.SIGTERM, lambda *_: None)
        wakeup = signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
        answer = threading.Thread(target=self._answer, args=(reads,), daemon=True)
        answer.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            signal.signal(signal.SIGTERM, handler)
            os.close(writes)
            answer.join()
            os.close(reads)

    def _answer(self, reads: int) -> None:
        while number := os.read(reads, 1):
            if number[0] == signal.SIGTERM:
                self.stopped("SIGTERM came, from outside or because another worker has ended")
                os._exit(128 + signal.SIGTERM)

    def _first(self) -> bool:
        if self._store is None:
            return True
        try:
            return self._store.add(f"{MODULE}/ended/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1) == 1
        except RuntimeError:  # torchrun itself is gone
            return True
