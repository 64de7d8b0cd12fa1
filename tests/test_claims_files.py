"""Witness: the claims files themselves, held against the bibliography, the chapters and the rules of the ledger."""

import re
import tomllib
from pathlib import Path

import pytest

from companion.ledger import claims
from companion.ledger.records import Record
from companion.ledger.verdicts import Verdict, compare

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "claims").glob("*.toml"))
ALL = [claim for file in FILES for claim in claims.load(file.stem)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_loads_whole(file):
    written = tomllib.loads(file.read_text(encoding="utf-8"))["claim"]
    assert [claim.id for claim in claims.load(file.stem)] == [entry["id"] for entry in written]
    assert len(written) > 0


def test_ids_are_unique_over_all_topics():
    ids = [name for claim in ALL for name in (claim.id, claim.control) if name]
    assert len(ids) == len(set(ids)) > 0
    assert {claim.topic for claim in ALL} == {file.stem for file in FILES}


def test_ids_are_slugs_that_an_anchor_can_carry():
    for claim in ALL:
        for name in filter(None, (claim.id, claim.control)):
            assert re.fullmatch(r"[a-z]+(_[a-z]+)*\.[a-z0-9]+(-[a-z0-9]+)*", name), name


@pytest.mark.parametrize("paper", sorted({claim.paper for claim in ALL}))
def test_a_paper_stands_in_the_bibliography(paper):
    keys = re.findall(r"^@\w+\{([^,\s]+),", (ROOT / "book/references.bib").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(keys) == len(set(keys))
    assert paper in {*keys, "companion"}


def test_a_published_number_stands_in_its_claim_and_meets_its_expectation():
    published = [claim for claim in ALL if claim.published is not None]
    assert published
    for claim in published:
        value = claim.published["value"]
        assert compare(claim.expect, Record(claim.id, value)) is Verdict.REPRODUCED, claim.id
        assert value in [float(number) for number in re.findall(r"\d+(?:\.\d+)?", claim.says)], claim.id


def test_kinds_of_evidence_keep_their_rules():
    for claim in ALL:
        assert bool({"increasing", "decreasing"} & set(claim.expect)) == (claim.evidence == "trend"), claim.id
        if claim.evidence == "published":
            assert set(claim.runs) <= {"gpu"}, claim.id
            assert not claim.gates, claim.id
        if claim.evidence == "exact":
            assert "cpu" in claim.gates, claim.id


def test_whatever_gates_has_a_control_or_is_one_of_the_few_that_can_have_none():
    without = {claim.id for claim in ALL if claim.gates and claim.control is None}
    assert without <= {
        "spectral.probe-invariance-knn",  # itself the opposite of spectral.probe-invariance
        "spectral.k-sweep",  # spectral.k-below-m is one of its points
        "spectral.transfer-threshold",  # spectral.transfer-connected has both sides of it
        "spectral.image-transfer-threshold",  # spectral.image-transfer has both sides of it
        "spectral.image-domain",  # spectral.domain-separable has it, on block graphs
    }
