"""Witness: the sources of the book themselves, read cell by cell; the checkers are shown texts that break the rules."""

import ast
import dataclasses
import itertools
import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jupytext
import pytest

from companion.ledger import claims, paths
from companion.ledger.records import Results
from companion.ledger.runner import allowed_parameters

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
PAGES = sorted((ROOT / "book").glob("*.md"))
CLAIMS = claims.load_all()

LINES, WIDTH = 30, 120
LABEL = r"[a-z]+-[a-z0-9-]+"
DEFINITIONS = {  # where MyST takes a label from, by the role that may point there
    "prf:ref": re.compile(rf"^[`:]*\{{prf:[a-z]+\}}[^\n]*\n(?::[a-z]+:[^\n]*\n)*?:label: ({LABEL})$", re.MULTILINE),
    "eq": re.compile(rf"^(?:\$\$ \(({LABEL})\)|[`:]*\{{math\}}\n:label: ({LABEL}))$", re.MULTILINE),
    "ref": re.compile(rf"^(?:\(({LABEL})\)=|:name: (?!fig-|tab-)({LABEL}))$", re.MULTILINE),
    "numref": re.compile(r"^:name: ((?:fig|tab)-[a-z0-9-]+)$", re.MULTILINE),
}
REFERENCE = re.compile(r"\{(eq|numref|prf:ref|ref)\}`(?:[^`<]*<)?([^`<>]+)>?`")
CITATION = re.compile(r"\{cite(?::[a-z]+)?\}`([^`]+)`")
NUMBER = re.compile(r"\{(measured|verdict|published|evidence)\}`([^`|]+)[^`]*`")
CODE_LABEL = re.compile(r"(?<![\w-])(?:thm|lem|cor|prop|def|rem|ex|eq|fig)-[a-z0-9-]+")
DOC_LABEL = re.compile(r"`((?:thm|lem|cor|prop|def|rem|ex|eq|fig)-[a-z0-9-]+)`")


def read(path: Path):
    return jupytext.read(path, fmt="py:percent")


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text(path: Path) -> str:
    """What the book shows of a source: a page as it is, a notebook's prose with its figures' captions."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    cells = read(path).cells
    captions = [str(cell.metadata.get("mystnb", {}).get("figure", {}).get("caption", "")) for cell in cells]
    return "\n\n".join(c.source if c.cell_type == "markdown" else k for c, k in zip(cells, captions, strict=True))


def labels(path: Path) -> Iterator[tuple[str, str]]:
    """Every label that a source defines, with the role that may point to it."""
    for role, pattern in DEFINITIONS.items():
        for match in pattern.finditer(text(path)):
            yield role, next(filter(None, match.groups()))
    if path.suffix == ".py":
        for cell in code(read(path)):
            if name := cell.metadata.get("mystnb", {}).get("figure", {}).get("name"):
                yield "numref", name


RECORDS = json.loads((ROOT / "benchmarks/records.json").read_text(encoding="utf-8"))
BOOK = [
    *((role, label) for path in (*NOTEBOOKS, *PAGES) for role, label in labels(path)),
    *(("ref", f"record-{name.replace('_', '-')}") for name in RECORDS),  # {speed-tables} defines them
]


def calls(notebook, name: str) -> list[tuple[int, ast.Call]]:
    """Every call `ledger.name(...)` with the number of its code cell."""
    found = []
    for number, cell in enumerate(code(notebook)):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == f"ledger.{name}":
                found.append((number, node))
    return found


def topic(notebook) -> str:
    ((_, call),) = calls(notebook, "begin")
    (argument,) = (keyword.value for keyword in call.keywords if keyword.arg == "claims")
    return ast.literal_eval(argument)


def strings(notebook) -> tuple[set[str], set[str]]:
    """String constants of the code: whole ones, and the constant parts of f-strings."""
    whole, parts = set(), set()
    for cell in code(notebook):
        tree = ast.parse(cell.source)
        inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                (parts if id(node) in inside else whole).add(node.value)
    return whole, parts


def composable(name: str, atoms: set[str], pieces: int = 3) -> bool:
    """Whether a name is one string of the code, or two or three of them one after the other."""
    if name in atoms:
        return True
    return pieces > 1 and any(
        composable(name[cut:], atoms, pieces - 1) for cut in range(1, len(name)) if name[:cut] in atoms
    )


def expected(topic_claims, profile: str) -> set[str]:
    """Ids that a run of a profile records, optional ones included: its claims and their controls."""
    return {name for c in topic_claims if profile in c.runs for name in (c.id, c.control) if name}


def test_there_is_something_to_check():
    assert NOTEBOOKS
    assert PAGES
    assert {role for role, _ in BOOK} == {"prf:ref", "eq", "ref", "numref"}
    assert len(BOOK) > 50


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestCells:
    def test_its_name_has_a_number(self, path):
        assert re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem)

    def test_one_cell_of_parameters_and_it_comes_first(self, path):
        notebook = read(path)
        assert allowed_parameters(notebook, path.name) == ("profile", "seed")
        first = code(notebook)[0]
        assert first.metadata["tags"] == ["parameters"]
        values = {}
        exec(first.source, values)
        assert (values["profile"], values["seed"]) == ("cpu", 0)

    def test_the_first_cell_after_them_imports_and_no_other_does(self, path):
        _, imports, *others = code(read(path))
        assert re.match(r"(import|from) \w", imports.source)
        for cell in others:
            nodes = ast.walk(ast.parse(cell.source))
            assert not [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)], cell.source[:80]

    def test_code_cells_are_short_and_narrow(self, path):
        for cell in code(read(path)):
            lines = cell.source.splitlines()
            assert len(lines) <= LINES, f"{len(lines)} lines in the cell that begins: {lines[0]}"
            for line in lines:
                assert len(line) <= WIDTH, line

    def test_the_ledger_is_opened_once_for_this_chapter_and_closed_last(self, path):
        notebook = read(path)
        ((opened, begin),) = calls(notebook, "begin")
        ((closed, _),) = calls(notebook, "close")
        assert ast.literal_eval(begin.args[0]) == path.stem
        assert {k.arg: ast.unparse(k.value) for k in begin.keywords if k.arg in ("profile", "seed")} == {
            "profile": "profile",
            "seed": "seed",
        }
        last = len(code(notebook)) - 1
        assert closed == last
        assert code(notebook)[last].source.strip() == "_ = ledger.close()"
        assert opened < min(number for number, _ in calls(notebook, "record"))

    def test_figures_have_a_name_a_caption_and_words_for_those_who_do_not_see_them(self, path):
        names = []
        for cell in code(read(path)):
            shown = cell.metadata.get("mystnb", {})
            if "plt.subplots(" in cell.source:
                assert re.fullmatch("fig-[a-z0-9-]+", shown["figure"]["name"])
                assert shown["figure"]["caption"].endswith(".")
                assert len(shown["image"]["alt"]) > 30
                names.append(shown["figure"]["name"])
        names += re.findall(r"^`+\{explorable\}[^\n]*\n:name: (fig-[a-z0-9-]+)\n\n\S", text(path), re.MULTILINE)
        assert sorted(names) == sorted(label for _, label in labels(path) if label.startswith("fig-"))

    def test_directives_name_this_chapter_and_its_topic(self, path):
        found = dict(re.findall(r"^`+\{(cost-card|stamp|claims-table)\} *(\S*)$", text(path), re.MULTILINE))
        assert found == {"cost-card": path.stem, "stamp": path.stem, "claims-table": topic(read(path))}


@pytest.mark.parametrize("path", [*NOTEBOOKS, *PAGES], ids=lambda path: path.name)
class TestReferences:
    def test_every_label_resolves_to_what_its_role_points_at(self, path):
        for role, label in REFERENCE.findall(text(path)):
            assert (role, label) in BOOK, f"{{{role}}}`{label}`"

    def test_every_citation_is_in_the_bibliography(self, path):
        bibliography = (ROOT / "book/references.bib").read_text(encoding="utf-8")
        keys = set(re.findall(r"^@\w+\{([^,\s]+),", bibliography, re.MULTILINE))
        for names in CITATION.findall(text(path)):
            assert {name.strip() for name in names.split(",")} <= keys, names

    def test_every_number_and_verdict_has_a_claim(self, path):
        by_id = {claim.id: claim for topic_claims in CLAIMS.values() for claim in topic_claims}
        controls = {claim.control for claim in by_id.values() if claim.control}
        for role, name in NUMBER.findall(text(path)):
            assert name in by_id or (role == "measured" and name in controls), f"{{{role}}}`{name}`"
            assert role != "published" or by_id[name].published is not None, name

    def test_no_role_is_left_without_its_text(self, path):
        """A role broken over a line or written with a blank would be shown as it stands."""
        known = r"eq|numref|prf:ref|ref|cite|cite:[a-z]+|measured|verdict|published|evidence|doc|download|math|sub|sup"
        for match in re.finditer(rf"(?<!`)\{{({known})\}}(?!`[^`\n]+`)", text(path)):
            pytest.fail(f"{path.name}: {text(path)[match.start() : match.start() + 60]!r}")


def test_labels_are_unique_in_the_whole_book():
    assert {label: n for label, n in Counter(label for _, label in BOOK).items() if n > 1} == {}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestRecords:
    def test_every_claim_of_the_cpu_profile_is_written_in_the_code(self, path):
        notebook = read(path)
        whole, parts = strings(notebook)
        absent = {name for name in expected(CLAIMS[topic(notebook)], "cpu") if not composable(name, whole | parts)}
        assert absent == set()

    def test_every_id_that_is_written_out_is_a_claim_or_a_control(self, path):
        notebook = read(path)
        known = {name for claim in CLAIMS[topic(notebook)] for name in (claim.id, claim.control) if name}
        whole, parts = strings(notebook)
        written = {name for name in whole if name.startswith(f"{topic(notebook)}.")}
        assert written
        assert written <= known
        for start in (part for part in parts if part.startswith(f"{topic(notebook)}.")):
            assert any(name.startswith(start) for name in known), start

    def test_no_id_is_recorded_by_two_lines(self, path):
        direct = [call.args[0] for _, call in calls(read(path), "record")]
        written = Counter(node.value for node in direct if isinstance(node, ast.Constant))
        assert written
        assert {name: n for name, n in written.items() if n > 1} == {}

    def test_every_record_has_a_word_in_the_prose_or_a_line_in_the_table(self, path):
        assert f"{{claims-table}} {topic(read(path))}" in text(path)

    def test_a_committed_run_has_exactly_the_records_of_its_profile(self, path):
        for profile in ("cpu", "gpu"):
            file = paths.results_file(profile, path.stem)
            if file.is_file():
                found = Results.read(file)
                assert (found.chapter, found.topic, found.profile) == (path.stem, topic(read(path)), profile)
                assert missing_or_strange(found) == set()


def missing_or_strange(results: Results) -> set[str]:
    """Ids that a run should have recorded and has not, or has and should not."""
    found, topic_claims = set(results.records), CLAIMS[results.topic]
    left_out = expected([claim for claim in topic_claims if claim.optional], results.profile) - found
    return (found ^ expected(topic_claims, results.profile)) - left_out


def test_every_topic_has_its_chapter():
    assert sorted(topic(read(path)) for path in NOTEBOOKS) == sorted(CLAIMS)


def test_labels_in_comments_of_the_code_exist():
    known = {label for _, label in BOOK}
    cited = {}
    for path in NOTEBOOKS:
        for cell in code(read(path)):
            for comment in re.findall(r"#(.*)$", cell.source, re.MULTILINE):
                cited |= {label: comment for label in CODE_LABEL.findall(comment)}
    assert cited
    assert {label: comment for label, comment in cited.items() if label not in known} == {}


def docstrings(package: Path) -> Iterator[tuple[str, str]]:
    """Every docstring of a package, with its place."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for file in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, kinds) and (found := ast.get_docstring(node)):
                yield f"{file.relative_to(ROOT)}:{getattr(node, 'name', 'module')}", found


def test_every_label_in_a_docstring_exists_in_the_book():
    known = {label for _, label in BOOK}
    cited = {(place, label) for place, found in docstrings(ROOT / "companion") for label in DOC_LABEL.findall(found)}
    assert len(cited) > 20
    assert {(place, label) for place, label in cited if label not in known} == set()


def test_docstrings_cite_papers_and_chapters_and_nothing_internal():
    internal = re.compile(r"(?<!style )\bsheet\b|\bSC-\d+\b|\bissue \d+\b|\bDESIGN\b", re.IGNORECASE)
    assert internal.search("as claim SC-13 has it")
    found = {place: hit.group() for place, doc in docstrings(ROOT / "companion") if (hit := internal.search(doc))}
    assert found == {}


def test_no_executed_notebook_is_in_git():
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = done.stdout.splitlines()
    assert {f"notebooks/{path.name}" for path in NOTEBOOKS} & set(tracked)
    assert [name for name in tracked if name.endswith(".ipynb")] == []


class TestTheCheckersThemselves:
    """Controls: what each pattern has to find, and what it must not take for found."""

    @pytest.mark.parametrize(
        ("source", "role", "label"),
        [
            ("```{prf:theorem} A title\n:label: thm-one\n\nText.\n```", "prf:ref", "thm-one"),
            ("````{prf:remark}\n:class: small\n:label: rem-two\n````", "prf:ref", "rem-two"),
            ("$$\nx=1\n$$ (eq-three)", "eq", "eq-three"),
            ("(ch-four)=\n# Chapter", "ref", "ch-four"),
            ("```{admonition} Exercise\n:class: exercise\n:name: ex-five\n", "ref", "ex-five"),
            ("```{math}\n:label: eq-six\nx=1\n```", "eq", "eq-six"),
            ("```{figure} a.svg\n:name: fig-seven\n", "numref", "fig-seven"),
        ],
    )
    def test_definitions(self, source, role, label, tmp_path):
        (tmp_path / "page.md").write_text(source, encoding="utf-8")
        assert list(labels(tmp_path / "page.md")) == [(role, label)]

    @pytest.mark.parametrize(
        "source", ["$$\nx=1\n$$ eq-three", "see (eq-three)", ":label: thm-one", "```{note}\n:label: thm-one\n```"]
    )
    def test_what_defines_nothing(self, source, tmp_path):
        (tmp_path / "page.md").write_text(source, encoding="utf-8")
        assert list(labels(tmp_path / "page.md")) == []

    def test_references_in_all_their_forms(self):
        source = "{eq}`eq-a`, {numref}`Figure %s <fig-b>`, {prf:ref}`thm-c` and {ref}`this chapter <ch-d>`"
        assert REFERENCE.findall(source) == [
            ("eq", "eq-a"),
            ("numref", "fig-b"),
            ("prf:ref", "thm-c"),
            ("ref", "ch-d"),
        ]
        assert CITATION.findall("{cite:t}`one2001a` and {cite:p}`two2002b,three2003c`") == [
            "one2001a",
            "two2002b,three2003c",
        ]
        assert NUMBER.findall("{measured}`toy.a|.1e|value` {verdict}`toy.a`") == [
            ("measured", "toy.a"),
            ("verdict", "toy.a"),
        ]

    def test_ids_put_together_from_strings(self):
        atoms = {"toy.", "toy.estimator-", "bound", "-random", "unbiased"}
        assert all(composable(name, atoms) for name in ("toy.bound", "toy.bound-random", "toy.estimator-unbiased"))
        assert not any(composable(name, atoms) for name in ("toy.other", "toy.bound-", "toy.bound-random-random"))

    def test_a_run_with_a_record_too_few_or_too_many(self):
        for topic_name, topic_claims in CLAIMS.items():
            whole = dict.fromkeys(sorted(expected(topic_claims, "cpu")))
            run = {"chapter": "x", "topic": topic_name, "profile": "cpu", "stamp": {}}
            assert missing_or_strange(Results(records=whole, **run)) == set()
            assert missing_or_strange(Results(records=whole | {"x.y": None}, **run)) == {"x.y"}
            (first, *_), rest = whole, dict(itertools.islice(whole.items(), 1, None))
            assert missing_or_strange(Results(records=rest, **run)) == {first}

    def test_an_optional_record_may_be_there_or_not(self, monkeypatch):
        claim = dataclasses.replace(CLAIMS["spectral"][0], id="x.may", control=None, runs=("gpu",), optional=True)
        monkeypatch.setitem(CLAIMS, "x", (claim, dataclasses.replace(claim, id="x.must", optional=False)))

        def wrong(profile, *ids):
            return missing_or_strange(Results("x", "x", profile, dict.fromkeys(ids), {}))

        assert wrong("gpu", "x.must") == wrong("gpu", "x.must", "x.may") == wrong("cpu") == set()
        assert wrong("gpu", "x.may") == {"x.must"}
        assert wrong("cpu", "x.may") == {"x.may"}
