"""Where the ledger's files stand, relative to one root."""

from __future__ import annotations

import os
from pathlib import Path

#: Root of the checkout; ``COMPANION_ROOT`` overrides it (the pipeline's own tests do).
ROOT = Path(os.environ.get("COMPANION_ROOT") or Path(__file__).resolve().parents[2])

PROFILES = ("smoke", "cpu", "gpu")


def claims_file(topic: str) -> Path:
    """Path of the claims of one topic, ``claims/<topic>.toml``."""
    return ROOT / "claims" / f"{topic}.toml"


def results_file(profile: str, chapter: str) -> Path:
    """Path of what a finished run left behind, ``results/<profile>/<chapter>.json``."""
    return ROOT / "results" / profile / f"{chapter}.json"
