"""The stamp of a run: which code, which machine, how long, how much memory."""

from __future__ import annotations

import hashlib
import platform
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from companion.ledger import paths

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "matplotlib")
SOURCES = ("companion", "notebooks", "claims", "requirements")


def now() -> str:
    """The time, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def origin(chapter: str, topic: str) -> dict[str, Any]:
    """Which code runs: ``commit`` (None outside git), ``dirty`` and ``source_hash``."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", *SOURCES)),
        "source_hash": source_hash(chapter, topic),
    }


def collect(code: dict[str, Any], *, seed: int, started: str, began: float) -> dict[str, Any]:
    """Everything that a reader needs to judge, or to repeat, a run.

    Args:
        code: what `origin` said when the run began.
        seed: the run's base seed.
        started: when it began (`now`).
        began: the same on the monotonic clock, in seconds.

    Returns:
        A dictionary that JSON can hold; seconds and bytes are named as such.
    """
    import torch  # here, so that reading results does not load torch

    cuda = torch.cuda.is_initialized()  # used, not merely there
    return {
        **code,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "seed": seed,
        "started": started,
        "wall_seconds": round(time.monotonic() - began, 1),
        "peak_memory_bytes": _peak_memory(),
    }


def source_hash(chapter: str, topic: str) -> str:
    """SHA-256 over the notebook, the package and the claims: equal hashes, equal code."""
    files = [paths.ROOT / "notebooks" / f"{chapter}.py", paths.claims_file(topic)]
    files += sorted((paths.ROOT / "companion").rglob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            digest.update(file.relative_to(paths.ROOT).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=paths.ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kibibytes
