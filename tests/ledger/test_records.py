"""Witness: a chapter's ledger opened, filled and closed by hand, with writes that break half-way."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from companion.ledger import claims, paths, records
from companion.ledger.records import Record, RecordError, Results

CLAIMS = """
[[claim]]
id = "toy.mean"
paper = "companion"
locator = "Theorem 1"
says = "The mean is small."
evidence = "exact"
quantity = "largest mean"
unit = "1"
expect = { below = 1.0 }
control = "toy.mean-off"
control_says = "off"

[[claim]]
id = "toy.curve"
paper = "companion"
locator = "Theorem 2"
says = "It falls."
evidence = "trend"
quantity = "error"
unit = "1"
expect = { decreasing = true }
"""


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """A root with one claims file, and no ledger open before or after."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(records, "_run", None)
    monkeypatch.delenv(records.VARIABLE, raising=False)
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "toy.toml").write_text(CLAIMS, encoding="utf-8")
    return tmp_path


def begin() -> None:
    records.begin("07_toy", claims="toy", profile="cpu", seed=3)


def whole() -> Results:
    return Results("07_toy", "toy", "cpu", {"toy.mean": Record("toy.mean", 0.5, [0.25, 0.75], 5)}, {"seed": 3})


class TestLifeCycle:
    def test_what_is_recorded_is_read_back(self, root):
        begin()
        records.record("toy.mean", 0.5, interval=(0.25, 0.75), n=5, note="a word")
        records.record("toy.mean-off", 2)
        records.record("toy.curve", (0.5, 0.25), interval=((0.25, 0.75), (0.0, 0.5)))
        path = records.close()
        assert path == root / "_build" / "cpu" / "alone" / "07_toy.json"
        found = Results.read(path)
        assert (found.chapter, found.topic, found.profile) == ("07_toy", "toy", "cpu")
        assert [(r.id, r.value, r.interval, r.n, r.note) for r in found.records.values()] == [
            ("toy.mean", 0.5, [0.25, 0.75], 5, "a word"),
            ("toy.mean-off", 2.0, None, None, None),
            ("toy.curve", [0.5, 0.25], [[0.25, 0.75], [0.0, 0.5]], None, None),
        ]
        assert list(found.records) == [r.id for r in found.records.values()]
        assert found.stamp["seed"] == 3

    def test_the_pipeline_names_the_file(self, root, monkeypatch):
        monkeypatch.setenv(records.VARIABLE, str(root / "elsewhere" / "07_toy.json"))
        begin()
        assert records.close() == root / "elsewhere" / "07_toy.json"
        assert Results.read(root / "elsewhere" / "07_toy.json").records == {}
        assert not (root / "_build").exists()

    def test_a_record_carries_the_seconds_since_the_one_before(self, monkeypatch):
        clock = iter([100.0, 101.5, 109.0])
        monkeypatch.setattr(records, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        begin()
        records.record("toy.mean", 0.5)
        records.record("toy.mean-off", 2.0)
        assert [r.seconds for r in records._run.records.values()] == [1.5, 7.5]

    def test_nothing_is_written_before_close(self, root):
        begin()
        records.record("toy.mean", 0.5)
        assert [p.name for p in root.rglob("*") if p.is_file()] == ["toy.toml"]

    def test_record_and_close_need_an_open_ledger(self):
        for use in (lambda: records.record("toy.mean", 0.5), records.close):
            with pytest.raises(
                RecordError, match=r"begin\(\.\.\.\): open the ledger in the notebook's first code cell$"
            ):
                use()
        begin()
        records.close()
        with pytest.raises(RecordError, match=r"^close\(\) without begin"):
            records.close()

    def test_begin_again_starts_from_nothing(self):
        begin()
        records.record("toy.mean", 0.5)
        begin()
        assert Results.read(records.close()).records == {}

    def test_a_profile_or_topic_that_is_none(self):
        with pytest.raises(RecordError, match=r"^profile 'laptop' is none of smoke, cpu, gpu$"):
            records.begin("07_toy", claims="toy", profile="laptop", seed=0)
        with pytest.raises(claims.ClaimsError, match=r"^no claims file other\.toml"):
            records.begin("07_toy", claims="other", profile="cpu", seed=0)
        assert records._run is None


class TestRefused:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("toy.other", 1.0), r"no claim or control 'toy\.other' in claims/toy\.toml; add it there first"),
            (("toy.mean", math.nan), r"'toy\.mean': nan with interval None is not finite; nothing was recorded"),
            (("toy.mean", -math.inf), r"'toy\.mean': -inf with interval None is not finite; nothing was recorded"),
            (("toy.mean", 1.0, (0.0, math.inf)), r"'toy\.mean': 1\.0 with interval \(0\.0, inf\) is not finite"),
            (("toy.mean", 1.0, (0.0, 0.5)), r"'toy\.mean': interval \(0\.0, 0\.5\) must hold its value 1\.0"),
            (("toy.mean", 1.0, (2.0, 0.0)), r"'toy\.mean': interval \(2\.0, 0\.0\) must hold its value 1\.0"),
            (("toy.mean", 1.0, (0.0, 1.0, 2.0)), r"'toy\.mean': interval must be \(low, high\), found \(0\.0, 1\.0, 2"),
            (("toy.mean", 1.0, [(0.0, 2.0)]), r"'toy\.mean': interval must be \(low, high\), found \[\(0\.0, 2\.0\)\]"),
            (("toy.curve", []), r"'toy\.curve': \[\] with interval None is not finite"),
            (("toy.curve", [1.0, math.nan]), r"'toy\.curve': \[1\.0, nan\] with interval None is not finite"),
            (("toy.curve", [1.0, 0.5], [(0, 2)]), r"'toy\.curve': interval \[\(0, 2\)\] must hold its value \[1\.0, 0"),
            (("toy.curve", [1.0, 0.5], [(0, 2), (1, 2)]), r"'toy\.curve': interval .* must hold its value \[1\.0, 0"),
            (("toy.curve", [1.0, 0.5], [(0, 2), (0, 1, 2)]), r"'toy\.curve': interval.* must "),
        ],
    )
    def test_with_a_reason_and_without_a_trace(self, arguments, message):
        begin()
        id, value, *interval = arguments
        with pytest.raises(RecordError, match=f"^{message}"):
            records.record(id, value, interval=interval[0] if interval else None)
        assert records._run.records == {}
        records.record("toy.mean", 1.0)  # the ledger stays open

    @pytest.mark.parametrize(
        ("id", "value", "interval"),
        [("toy.curve", [1.0, 0.5], (0.0, 2.0)), ("toy.mean", 1.0, [(0.0, 2.0), (0.0, 2.0)])],
    )
    def test_one_interval_for_a_list_and_a_list_for_one_number(self, id, value, interval):
        begin()
        with pytest.raises(RecordError, match=rf"^'{id}': interval.* must "):
            records.record(id, value, interval=interval)
        assert records._run.records == {}

    def test_a_second_number_for_one_claim(self):
        begin()
        records.record("toy.mean", 0.5)
        with pytest.raises(RecordError, match=r"^'toy\.mean' is recorded twice in 07_toy; a claim has one number$"):
            records.record("toy.mean", 0.25)
        assert records._run.records["toy.mean"].value == 0.5


class TestFile:
    def test_a_round_trip_is_the_identity(self, tmp_path):
        whole().write(tmp_path / "a" / "b.json")
        assert Results.read(tmp_path / "a" / "b.json") == whole()

    @pytest.mark.parametrize("breaks", ["write_text", "replace"])
    def test_a_write_that_breaks_leaves_the_old_file_and_nothing_else(self, tmp_path, monkeypatch, breaks):
        folder = tmp_path / "results"
        whole().write(folder / "07_toy.json")
        before = (folder / "07_toy.json").read_bytes()
        newer = Results("07_toy", "toy", "cpu", {}, {"seed": 4})
        real = getattr(Path, breaks)

        def disk_full(path, content, *arguments, **keywords):
            if breaks == "write_text":
                real(path, content[: len(content) // 2], *arguments, **keywords)
            raise OSError("no space left on device")

        with monkeypatch.context() as full:
            full.setattr(Path, breaks, disk_full)
            with pytest.raises(OSError, match="no space left"):
                newer.write(folder / "07_toy.json")
        assert [p.name for p in folder.iterdir()] == ["07_toy.json"]
        assert (folder / "07_toy.json").read_bytes() == before
        newer.write(folder / "07_toy.json")
        assert Results.read(folder / "07_toy.json") == newer

    def test_a_stamp_that_json_cannot_hold_is_not_written(self, tmp_path):
        with pytest.raises(ValueError, match="JSON compliant"):
            Results("07_toy", "toy", "cpu", {}, {"wall_seconds": math.nan}).write(tmp_path / "results" / "07_toy.json")
        assert list((tmp_path / "results").iterdir()) == []

    def test_a_truncated_file_is_never_taken_for_a_result(self, tmp_path):
        path = tmp_path / "07_toy.json"
        whole().write(path)
        text = path.read_text(encoding="utf-8").rstrip()
        for length in range(len(text)):
            path.write_text(text[:length], encoding="utf-8")
            with pytest.raises(
                RecordError, match=r"^07_toy\.json is not a whole results file .*; run the chapter again$"
            ):
                Results.read(path)

    @pytest.mark.parametrize("missing", ["schema", "chapter", "topic", "profile", "records", "stamp"])
    def test_a_file_without_one_of_its_parts(self, tmp_path, missing):
        path = tmp_path / "07_toy.json"
        whole().write(path)
        document = json.loads(path.read_text(encoding="utf-8"))
        del document[missing]
        with pytest.raises(RecordError, match=rf"^x is not a whole results file \(KeyError\('{missing}'\)\)"):
            Results.parse(json.dumps(document), "x")

    @pytest.mark.parametrize(
        "text", ["[]", "3", '{"schema": 1, "records": [1]}', '{"schema": 1, "records": [{"id": 1}]}']
    )
    def test_other_json_is_no_results_file(self, text):
        with pytest.raises(RecordError, match=r"^x is not a whole results file"):
            Results.parse(text, "x")

    def test_another_schema_asks_for_another_run(self):
        with pytest.raises(RecordError, match=r"^x has schema 2, expected 1; run the chapter again$"):
            Results.parse('{"schema": 2}', "x")

    def test_no_file(self, tmp_path):
        with pytest.raises(RecordError, match=r"^no results file 07_toy\.json in cpu/; run the chapter first$"):
            Results.read(tmp_path / "cpu" / "07_toy.json")
