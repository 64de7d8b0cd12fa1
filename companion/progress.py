"""Progress of long work: a bar for a person, or lines in a file for the pipeline that runs the notebook."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

VARIABLE = "COMPANION_PROGRESS"
INTERVAL = 0.5  # seconds between two lines: a training step may take a millisecond


def track(
    iterable: Iterable[T], what: str, total: int | None = None, note: Callable[[], str] | None = None
) -> Iterator[T]:
    """Yield from `iterable` and show how far it is.

    Under the pipeline the environment variable ``COMPANION_PROGRESS`` names a file; one JSON line
    ``{"what", "done", "total", "note"}`` is appended to it every half second, so that no bar ends up in an executed
    notebook. Anywhere else a bar is drawn on stderr.

    Args:
        iterable: what to run through.
        what: a few words on what is being done.
        total: number of items, if the iterable has no length.
        note: called when progress is shown; its text (the current loss, say) is shown too.

    Yields:
        The items of `iterable`, unchanged.

    >>> import io, contextlib
    >>> with contextlib.redirect_stderr(io.StringIO()):
    ...     list(track(range(3), "counting"))
    [0, 1, 2]
    """
    size = total if total is not None else getattr(iterable, "__len__", lambda: None)()
    target = os.environ.get(VARIABLE)
    if not target:
        with tqdm(iterable, desc=what, total=size, leave=False, mininterval=INTERVAL, file=sys.stderr) as bar:
            for item in bar:
                yield item
                if note is not None:
                    bar.set_postfix_str(note(), refresh=False)
        return
    shown = 0.0
    for done, item in enumerate(iterable, start=1):
        yield item
        if time.monotonic() - shown >= INTERVAL or done == size:
            shown = time.monotonic()
            line = {"what": what, "done": done, "total": size, "note": note() if note is not None else ""}
            with Path(target).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
