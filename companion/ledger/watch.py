"""Show on stderr which cell of a chapter runs and, inside it, how far its training is."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

PLAIN = "COMPANION_PLAIN"  # set by the pipeline where several chapters share one terminal
LINE_EVERY = 15.0  # seconds between two lines where stderr is no terminal
BAR_EVERY = 0.5


class Watch:
    """A bar over the cells of a chapter; what `companion.progress.track` writes appears behind it.

    On a terminal one bar, redrawn in place; elsewhere (CI, a log), or with ``COMPANION_PLAIN`` set, a line every 15
    seconds.

    Args:
        title: what to call the chapter.
        progress: the file to which ``track`` appends its lines; it may not exist yet.
        cells: number of code cells.
    """

    def __init__(self, title: str, progress: Path, cells: int) -> None:
        self.title, self.progress, self.cells = title, progress, cells
        self.plain = not sys.stderr.isatty() or bool(os.environ.get(PLAIN))
        self.done, self.began = 0, time.monotonic()
        self._offset, self._inside = 0, ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._bar = None if self.plain else tqdm(total=cells, desc=title, unit="cell", leave=False, file=sys.stderr)

    def __enter__(self) -> Watch:
        if self.plain:
            self._say(f"{self.title}: {self.cells} cells")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        if self._bar is not None:
            self._bar.close()
        self._say(f"{self.title}: {'done' if kind is None else 'failed'} after {time.monotonic() - self.began:.0f} s")

    def cell(self) -> None:
        """The next cell begins."""
        self.done += 1
        self._inside = ""

    def state(self) -> str:
        """How far the chapter is, in words."""
        self._read()
        return f"cell {self.done} of {self.cells}" + (f", {self._inside}" if self._inside else "")

    def _read(self) -> None:
        """Take the last whole line that ``track`` has appended since the last look."""
        if not self.progress.is_file():
            return
        with self.progress.open("rb") as stream:
            stream.seek(self._offset)
            fresh = stream.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]
        if not whole:
            return
        self._offset += len(whole)
        last = json.loads(whole.splitlines()[-1])
        of = f" of {last['total']:,}" if last.get("total") else ""
        note = f" ({last['note']})" if last.get("note") else ""
        self._inside = f"{last['what']} {last['done']:,}{of}{note}"

    def _follow(self) -> None:
        while not self._stop.wait(LINE_EVERY if self.plain else BAR_EVERY):
            if self._bar is None:
                self._say(f"{self.title}: {self.state()}, {time.monotonic() - self.began:.0f} s")
            else:
                self._bar.set_postfix_str(self.state().partition(", ")[2], refresh=False)
                self._bar.n = max(0, self.done - 1)
                self._bar.refresh()

    @staticmethod
    def _say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)
