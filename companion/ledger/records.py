"""What a run leaves behind: ``begin``, ``record``, ``close`` in a notebook, ``Results.read`` everywhere else."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from companion.ledger import claims, paths, stamp

SCHEMA = 1
VARIABLE = "COMPANION_RECORDS"


class RecordError(ValueError):
    """A record, or a file of records, is not what the ledger takes; the message says what was expected."""


@dataclass(frozen=True)
class Record:
    """One measured number (or a list of them, for a trend).

    Attributes:
        id: the claim's or the control's id.
        value: the number, or the numbers of a trend in order.
        interval: ``(low, high)``; for a trend one such pair a number.
        n: number of independent runs behind it.
        seconds: wall time since the record before.
        note: a word on how it was measured.
    """

    id: str
    value: float | list[float]
    interval: list[float] | list[list[float]] | None = None
    n: int | None = None
    seconds: float = 0.0
    note: str | None = None


@dataclass(frozen=True)
class Results:
    """All records of one run of one chapter, and its stamp."""

    chapter: str
    topic: str
    profile: str
    records: dict[str, Record]
    stamp: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read a results file.

        Raises:
            RecordError: the file is missing or is not a whole results file.
        """
        if not path.is_file():
            raise RecordError(f"no results file {path.name} in {path.parent.name}/; run the chapter first")
        return cls.parse(path.read_text(encoding="utf-8"), path.name)

    @classmethod
    def parse(cls, text: str, name: str) -> Results:
        """The same from the file's text; `name` is for messages."""
        try:
            document = json.loads(text)
            if document["schema"] != SCHEMA:
                raise RecordError(f"{name} has schema {document['schema']}, expected {SCHEMA}; run the chapter again")
            records = {entry["id"]: Record(**entry) for entry in document["records"]}
            return cls(document["chapter"], document["topic"], document["profile"], records, document["stamp"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise RecordError(f"{name} is not a whole results file ({error!r}); run the chapter again") from error

    def write(self, path: Path) -> None:
        """Write the file as a whole or not at all."""
        document = {
            "schema": SCHEMA,
            "chapter": self.chapter,
            "topic": self.topic,
            "profile": self.profile,
            "records": [asdict(record) for record in self.records.values()],
            "stamp": self.stamp,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            partial.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@dataclass
class _Run:
    chapter: str
    topic: str
    profile: str
    seed: int
    known: frozenset[str]
    records: dict[str, Record]
    began: float
    last: float
    started: str
    code: dict[str, Any]


_run: _Run | None = None


def begin(chapter: str, *, claims: str, profile: str, seed: int) -> None:
    """Open the ledger for one chapter; the notebook's first call.

    Args:
        chapter: the notebook's name, ``01_spectral_clustering``.
        claims: topic whose claims the chapter decides.
        profile: ``smoke``, ``cpu`` or ``gpu``.
        seed: the run's base seed, for the stamp.

    Raises:
        RecordError: unknown profile.
        ClaimsError: the claims file is missing or breaks the schema.
    """
    global _run
    if profile not in paths.PROFILES:
        raise RecordError(f"profile {profile!r} is none of {', '.join(paths.PROFILES)}")
    known = frozenset(name for claim in _load(claims) for name in (claim.id, claim.control) if name)
    now = time.monotonic()
    _run = _Run(chapter, claims, profile, seed, known, {}, now, now, stamp.now(), stamp.origin(chapter, claims))


def record(
    id: str,
    value: float | Sequence[float],
    *,
    interval: Sequence[Any] | None = None,
    n: int | None = None,
    note: str | None = None,
) -> None:
    """Enter one measured number under a claim's (or a control's) id. Nothing else decides a verdict.

    Args:
        id: an id of the chapter's claims file.
        value: the number; a sequence for the claims that expect a trend.
        interval: ``(low, high)`` around it; one such pair a number for a trend.
        n: number of independent runs (seeds, graphs, batches) behind it.
        note: a word on how it was measured.

    Raises:
        RecordError: no ``begin`` before it, an unknown or repeated id, a number that is not finite, or an interval
            that does not hold its value.
    """
    if _run is None:
        raise RecordError(f"record({id!r}) before begin(...): open the ledger in the notebook's first code cell")
    if id not in _run.known:
        raise RecordError(f"no claim or control {id!r} in claims/{_run.topic}.toml; add it there first")
    if id in _run.records:
        raise RecordError(f"{id!r} is recorded twice in {_run.chapter}; a claim has one number")
    trend = isinstance(value, Sequence)
    values = [float(v) for v in value] if isinstance(value, Sequence) else [float(value)]
    pairs = None if interval is None else [_pair(id, p) for p in (interval if trend else [interval])]
    numbers = values + ([v for pair in pairs for v in pair] if pairs else [])
    if not values or not all(math.isfinite(v) for v in numbers):
        raise RecordError(f"{id!r}: {value!r} with interval {interval!r} is not finite; nothing was recorded")
    if pairs is not None:
        fits = len(pairs) == len(values) and all(
            len(p) == 2 and p[0] <= v <= p[1] for p, v in zip(pairs, values, strict=False)
        )
        if not fits:
            raise RecordError(f"{id!r}: interval {interval!r} must hold its value {value!r}, as (low, high)")
    now = time.monotonic()
    kept = None if pairs is None else (pairs if trend else pairs[0])
    _run.records[id] = Record(id, values if trend else values[0], kept, n, round(now - _run.last, 3), note)
    _run.last = now


def close() -> Path:
    """Write the chapter's records and stamp, and close the ledger; the notebook's last call.

    Returns:
        The file written: the one that ``COMPANION_RECORDS`` names, or ``_build/<profile>/alone/<chapter>.json``
        when the notebook runs by itself.

    Raises:
        RecordError: no ``begin`` before it, or, in the pipeline, notebook, claims or package changed since.
    """
    global _run
    if _run is None:
        raise RecordError("close() without begin(...): open the ledger in the notebook's first code cell")
    alone = paths.ROOT / "_build" / _run.profile / "alone" / f"{_run.chapter}.json"
    path = Path(os.environ.get(VARIABLE) or alone)
    # alone, in an editor that saves by itself, the stamp simply names the code that the run began with
    if VARIABLE in os.environ and stamp.source_hash(_run.chapter, _run.topic) != _run.code["source_hash"]:
        raise RecordError(f"the code of {_run.chapter} changed while it ran; nothing was written, run it again")
    seal = stamp.collect(_run.code, seed=_run.seed, started=_run.started, began=_run.began)
    Results(_run.chapter, _run.topic, _run.profile, _run.records, seal).write(path)
    _run = None
    return path


def _pair(id: str, interval: Any) -> list[float]:
    try:
        low, high = interval
        return [float(low), float(high)]
    except (TypeError, ValueError):
        raise RecordError(f"{id!r}: interval must be (low, high), found {interval!r}") from None


# `claims` is also the name of an argument of `begin`, as the notebooks read best.
_load = claims.load
