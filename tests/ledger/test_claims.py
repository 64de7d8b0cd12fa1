"""Witness: claims files written by hand, whole or broken in one place, against the message that names the place."""

import re
import tomllib

import pytest

from companion.ledger import claims, paths
from companion.ledger.claims import Claim, ClaimsError

WHOLE = {
    "id": '"toy.mean"',
    "paper": '"companion"',
    "locator": '"Theorem 1"',
    "says": '"The mean is small."',
    "evidence": '"exact"',
    "quantity": '"largest mean"',
    "unit": '"1"',
    "expect": "{ below = 1e-8 }",
}
PUBLISHED = {"evidence": '"published"', "expect": "{ equals = 41.3, tol = 1 }"}


def table(**changes: str | None) -> str:
    """One claim as TOML; None leaves a field out."""
    fields = {**WHOLE, **changes}
    return "[[claim]]\n" + "".join(f"{key} = {value}\n" for key, value in fields.items() if value is not None)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write claims/<topic>.toml below a root of its own."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    (tmp_path / "claims").mkdir()

    def write(*tables: str, topic: str = "toy") -> None:
        (tmp_path / "claims" / f"{topic}.toml").write_text("\n".join(tables), encoding="utf-8")

    return write


def test_every_field_arrives(write):
    write(
        table(control='"toy.mean-shuffled"', control_says='"labels are shuffled"', note='"a word"')
        + 'runs = ["cpu", "gpu"]\ngates = ["cpu"]\npublished = { value = 41.3, setting = "their table" }\n'
    )
    assert claims.load("toy") == (
        Claim(
            id="toy.mean",
            topic="toy",
            paper="companion",
            locator="Theorem 1",
            says="The mean is small.",
            evidence="exact",
            quantity="largest mean",
            unit="1",
            expect={"below": 1e-8},
            control="toy.mean-shuffled",
            control_says="labels are shuffled",
            published={"value": 41.3, "setting": "their table"},
            runs=("cpu", "gpu"),
            gates=("cpu",),
            note="a word",
        ),
    )


def test_without_more_said_a_claim_runs_everywhere_and_gates_nowhere(write):
    published = 'published = { value = 41.3, setting = "their table" }\n'
    write(table(), table(id='"toy.table"', **PUBLISHED) + published)
    measured, quoted = claims.load("toy")
    assert (measured.runs, measured.gates, measured.optional) == (("smoke", "cpu", "gpu"), (), False)
    assert (quoted.runs, quoted.gates) == (("gpu",), ())


def test_a_claim_that_a_run_may_leave_out(write):
    write(table(runs='["gpu"]', optional="true"))
    (claim,) = claims.load("toy")
    assert (claim.runs, claim.optional) == (("gpu",), True)


@pytest.mark.parametrize(
    "expect",
    [
        "{ below = 1 }",
        "{ above = -0.015 }",
        "{ within = [0.8, 1.2] }",
        "{ equals = 0.5, tol = 0.1 }",
        "{ increasing = true }",
        "{ decreasing = true }",
    ],
)
def test_every_kind_of_expectation_is_taken(write, expect):
    write(table(expect=expect))
    assert claims.load("toy")[0].expect == tomllib.loads(f"expect = {expect}")["expect"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[claim]\n", "toy.toml is not valid TOML: "),
        ("", "toy.toml: expected [[claim]] tables and nothing else, found []"),
        ("[claim]\nid = 1\n", "toy.toml: expected [[claim]] tables and nothing else, found ['claim']"),
        ("title = 1\n" + table(), "toy.toml: expected [[claim]] tables and nothing else, found ['claim', 'title']"),
        ("claim = [1]\n", "toy.toml: expected [[claim]] tables and nothing else, found ['claim']"),
        (table() + table(), "toy.toml: toy.mean used twice; every claim and control has an id of its own"),
        (
            table(control='"toy.mean"', control_says='"itself"'),
            "toy.toml: toy.mean used twice; every claim and control has an id of its own",
        ),
        (
            table(control='"toy.off"', control_says='"off"') + table(id='"toy.off"'),
            "toy.toml: toy.off used twice; every claim and control has an id of its own",
        ),
    ],
)
def test_a_file_that_is_no_list_of_claims(write, text, message):
    write(text)
    with pytest.raises(ClaimsError, match=f"^{re.escape(message)}"):
        claims.load("toy")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"paper": None, "unit": None}, "missing paper, unit"),
        ({"expect": None}, "missing expect"),
        (
            {"colour": '"red"'},
            "unknown colour; allowed: id, paper, locator, says, evidence, quantity, unit, expect, con",
        ),
        ({"says": '""'}, "says must be a non-empty string"),
        ({"unit": "1"}, "unit must be a non-empty string"),
        ({"id": "3"}, "id must be a non-empty string"),
        ({"note": '""'}, "note must be a non-empty string"),
        ({"id": '"other.mean"'}, "id other.mean must read toy.<slug>"),
        ({"id": '"toy."'}, "id toy. must read toy.<slug>"),
        ({"control": '"mean-off"', "control_says": '"off"'}, "id mean-off must read toy.<slug>"),
        ({"evidence": '"anecdotal"'}, "evidence 'anecdotal' is none of exact, statistical, trend, published"),
        ({"control": '"toy.off"'}, "control and control_says go together"),
        ({"control_says": '"off"'}, "control and control_says go together"),
        ({"expect": '"small"'}, "expect must be a table such as { below = 1e-8 }"),
        ({"expect": "{}"}, "expect must hold exactly one of below, above, within, equals, increasing, decreasing, fou"),
        ({"expect": "{ below = 1, above = 0 }"}, "expect must hold exactly one of below, above, within, equals, incre"),
        ({"expect": "{ below = 1, tol = 0.1 }"}, "expect with below holds exactly below"),
        ({"expect": "{ equals = 1 }"}, "expect with equals holds exactly equals, tol"),
        ({"expect": "{ equals = 1, tol = 0 }"}, "tol must be positive"),
        ({"expect": '{ equals = 1, tol = "a" }'}, "equals, tol must be numbers"),
        ({"expect": '{ below = "1e-8" }'}, "below must be numbers"),
        ({"expect": "{ above = true }"}, "above must be numbers"),
        ({"expect": "{ within = [1, 1] }"}, "within must be [lo, hi], lo < hi"),
        ({"expect": "{ within = [1, 2, 3] }"}, "within must be [lo, hi], lo < hi"),
        ({"expect": "{ within = 1 }"}, "within must be [lo, hi], lo < hi"),
        ({"expect": "{ increasing = false }"}, "increasing must be true"),
        ({"expect": "{ decreasing = 1 }"}, "decreasing must be true"),
        ({"published": "41.3"}, "published must be { value = ..., setting = ... }"),
        ({"published": "{ value = 41.3 }"}, "published must be { value = ..., setting = ... }"),
        (PUBLISHED, "evidence published needs a published value"),
        ({"runs": '"cpu"'}, "runs = 'cpu' must be a list out of smoke, cpu, gpu"),
        ({"runs": '["laptop"]'}, "runs = ['laptop'] must be a list out of smoke, cpu, gpu"),
        ({"gates": '["CPU"]'}, "gates = ['CPU'] must be a list out of smoke, cpu, gpu"),
        ({"optional": '"yes"'}, "optional must be true or false"),
        ({"optional": "true", "gates": '["gpu"]'}, "optional and gates ['gpu'] exclude each other"),
        ({"runs": '["cpu"]', "gates": '["gpu"]'}, "gates ['gpu'] must be among runs ['cpu']: what is not measured can"),
    ],
)
def test_a_broken_field_is_named_with_its_claim(write, changes, message):
    number, name = 2, changes.get("id", WHOLE["id"]).strip('"')
    write(table(id='"toy.first"'), table(**changes))
    with pytest.raises(ClaimsError, match=rf"^toy\.toml, claim {number} \({re.escape(name)}\): {re.escape(message)}"):
        claims.load("toy")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expect": '{ within = ["a", "b"] }'}, "within must be [lo, hi], lo < hi"),
        ({"expect": '{ within = ["a", 1] }'}, "within must be [lo, hi], lo < hi"),
        ({"expect": "{ below = nan }"}, "below must be numbers"),
        ({"expect": "{ equals = 1, tol = inf }"}, "equals, tol must be numbers"),
        ({"runs": '[["cpu"]]'}, "runs = [['cpu']] must be a list out of smoke, cpu, gpu"),
    ],
)
def test_a_bound_that_decides_nothing_is_refused(write, changes, message):
    write(table(**changes))
    with pytest.raises(ClaimsError, match=re.escape(message)):
        claims.load("toy")


def test_a_topic_without_a_file_names_the_topics_there_are(write, tmp_path):
    with pytest.raises(ClaimsError, match=r"^no claims file toy\.toml in claims/; topics there: none$"):
        claims.load("toy")
    write(table())
    write(table(id='"art.mean"'), topic="art")
    with pytest.raises(ClaimsError, match=r"^no claims file other\.toml in claims/; topics there: art, toy$"):
        claims.load("other")
    assert [(topic, len(found)) for topic, found in claims.load_all().items()] == [("art", 1), ("toy", 1)]
