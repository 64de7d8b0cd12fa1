"""What each paper claims, where, and what counts as reproduced: ``claims/<topic>.toml``, read and checked."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, field
from typing import Any

from companion.ledger import paths

EVIDENCE = ("exact", "statistical", "trend", "published")
EXPECTATIONS = ("below", "above", "within", "equals", "increasing", "decreasing")
REQUIRED = ("id", "paper", "locator", "says", "evidence", "quantity", "unit", "expect")
OPTIONAL = ("control", "control_says", "published", "runs", "gates", "optional", "note")


class ClaimsError(ValueError):
    """A claims file breaks the schema; the message names file, claim, field and what was expected."""


@dataclass(frozen=True)
class Claim:
    """One claim, and what counts as reproduced.

    Attributes:
        id: ``<topic>.<slug>``, never renamed.
        topic: name of the claims file.
        paper: BibTeX key, or ``companion`` for what is ours.
        locator: where the paper says it.
        says: the claim in one sentence.
        evidence: ``exact``, ``statistical``, ``trend`` or ``published``.
        quantity: what is measured.
        unit: its unit, ``1`` for a pure number.
        expect: one of ``below``, ``above``, ``within = [lo, hi]``, ``equals`` with ``tol``, ``increasing``,
            ``decreasing``.
        control: id of the record with one hypothesis broken; it has to violate `expect`.
        control_says: what is broken there.
        published: the number a paper prints: ``value`` and ``setting``.
        runs: profiles in which the claim has to be measured.
        gates: profiles in which a contradiction fails the run.
        optional: whether a run may leave it out, being on data that cannot be fetched; recorded, it is judged as any.
        note: why a claim is contradicted, unresolved or not gated, where that needs a word.
    """

    id: str
    topic: str
    paper: str
    locator: str
    says: str
    evidence: str
    quantity: str
    unit: str
    expect: dict[str, Any]
    control: str | None = None
    control_says: str | None = None
    published: dict[str, Any] | None = None
    runs: tuple[str, ...] = paths.PROFILES
    gates: tuple[str, ...] = field(default=())
    optional: bool = False
    note: str | None = None


def load(topic: str) -> tuple[Claim, ...]:
    """Read and check the claims of one topic.

    Args:
        topic: name of the file under ``claims/``, without its ending.

    Returns:
        The claims in the order of the file.

    Raises:
        ClaimsError: the file is missing, is not TOML, or breaks the schema.
    """
    path = paths.claims_file(topic)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.toml"))) or "none"
        raise ClaimsError(f"no claims file {path.name} in {path.parent.name}/; topics there: {known}")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ClaimsError(f"{path.name} is not valid TOML: {error}") from error
    tables = document.get("claim")
    if set(document) != {"claim"} or not (isinstance(tables, list) and all(isinstance(t, dict) for t in tables)):
        raise ClaimsError(f"{path.name}: expected [[claim]] tables and nothing else, found {sorted(document)}")
    claims = tuple(_claim(topic, i, table) for i, table in enumerate(document["claim"], start=1))
    ids = [name for c in claims for name in (c.id, c.control) if name]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise ClaimsError(f"{path.name}: {', '.join(twice)} used twice; every claim and control has an id of its own")
    return claims


def load_all() -> dict[str, tuple[Claim, ...]]:
    """Every topic's claims, by topic, in alphabetical order."""
    return {p.stem: load(p.stem) for p in sorted((paths.ROOT / "claims").glob("*.toml"))}


def _claim(topic: str, number: int, table: dict[str, Any]) -> Claim:
    where = f"{topic}.toml, claim {number} ({table.get('id', 'no id')})"

    def demand(condition: bool, message: str) -> None:
        if not condition:
            raise ClaimsError(f"{where}: {message}")

    missing = [key for key in REQUIRED if key not in table]
    demand(not missing, f"missing {', '.join(missing)}")
    unknown = sorted(set(table) - set(REQUIRED) - set(OPTIONAL))
    demand(not unknown, f"unknown {', '.join(unknown)}; allowed: {', '.join(REQUIRED + OPTIONAL)}")
    for key in (*REQUIRED[:-1], "control", "control_says", "note"):
        demand(isinstance(table.get(key, "-"), str) and table.get(key, "-") != "", f"{key} must be a non-empty string")
    for name in (table["id"], table.get("control", table["id"])):
        demand(name.startswith(f"{topic}.") and len(name) > len(topic) + 1, f"id {name} must read {topic}.<slug>")
    demand(table["evidence"] in EVIDENCE, f"evidence {table['evidence']!r} is none of {', '.join(EVIDENCE)}")
    demand(("control" in table) == ("control_says" in table), "control and control_says go together")
    _check_expectation(table["expect"], demand)
    published = table.get("published")
    shape = published is None or (isinstance(published, dict) and set(published) == {"value", "setting"})
    demand(shape, "published must be { value = ..., setting = ... }")
    demand(table["evidence"] != "published" or published is not None, "evidence published needs a published value")
    default = ["gpu"] if table["evidence"] == "published" else list(paths.PROFILES)
    runs, gates = table.get("runs", default), table.get("gates", [])
    for key, profiles in (("runs", runs), ("gates", gates)):
        good = isinstance(profiles, list) and all(profile in paths.PROFILES for profile in profiles)
        demand(good, f"{key} = {profiles!r} must be a list out of {', '.join(paths.PROFILES)}")
    demand(set(gates) <= set(runs), f"gates {gates} must be among runs {runs}: what is not measured cannot gate")
    demand(isinstance(table.get("optional", False), bool), "optional must be true or false")
    demand(
        not (gates and table.get("optional")),
        f"optional and gates {gates} exclude each other: what may be absent cannot gate",
    )
    return Claim(**{**table, "topic": topic, "runs": tuple(runs), "gates": tuple(gates)})


def _check_expectation(expect: Any, demand: Any) -> None:
    demand(isinstance(expect, dict), "expect must be a table such as { below = 1e-8 }")
    kinds = [kind for kind in EXPECTATIONS if kind in expect]
    demand(len(kinds) == 1, f"expect must hold exactly one of {', '.join(EXPECTATIONS)}, found {sorted(expect)}")
    (kind,) = kinds
    allowed = {"equals", "tol"} if kind == "equals" else {kind}
    demand(set(expect) == allowed, f"expect with {kind} holds exactly {', '.join(sorted(allowed))}")
    value = expect[kind]
    if kind == "within":
        pair = isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)) and value[0] < value[1]
        demand(pair, "within must be [lo, hi], lo < hi")
    elif kind in ("increasing", "decreasing"):
        demand(value is True, f"{kind} must be true")
    else:
        demand(all(_is_number(expect[key]) for key in allowed), f"{', '.join(sorted(allowed))} must be numbers")
        demand(expect.get("tol", 1) > 0, "tol must be positive")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
