"""Witness: the file read back after every item, and what lands on stdout and stderr."""

import json

import pytest

from companion import progress
from companion.progress import track


@pytest.fixture
def file(tmp_path, monkeypatch):
    """The file that the pipeline names."""
    monkeypatch.setenv(progress.VARIABLE, str(tmp_path / "progress.jsonl"))
    return tmp_path / "progress.jsonl"


def test_every_line_is_whole_at_every_moment(file, monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    for item in track(range(20), "training", note=lambda: "loss -9.2"):
        text = file.read_text(encoding="utf-8") if item else ""
        assert text.count("\n") == item == len([json.loads(line) for line in text.splitlines()])
        assert not text or text.endswith("\n")
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert lines == [{"what": "training", "done": n, "total": 20, "note": "loss -9.2"} for n in range(1, 21)]


def test_the_last_item_is_always_told_and_not_much_in_between(file, monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL", 1e9)
    assert list(track(iter(range(1000)), "counting", total=1000)) == list(range(1000))
    assert file.read_text(encoding="utf-8") == '{"what": "counting", "done": 1000, "total": 1000, "note": ""}\n'


def test_a_line_every_interval(file, monkeypatch):
    clock = iter([10.0, 10.0, 10.3, 10.6, 10.6, 10.9, 11.1, 11.1])  # read once an item, and again when it is told
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    list(track(iter(range(5)), "x"))
    assert [json.loads(line)["done"] for line in file.read_text(encoding="utf-8").splitlines()] == [1, 3, 5]


def test_lines_are_added_to_what_is_there(file, monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL", 1e9)
    file.write_text("{}\n", encoding="utf-8")
    for what in ("one", "two"):
        list(track([0], what))
    assert [json.loads(line).get("what") for line in file.read_text(encoding="utf-8").splitlines()] == [
        None,
        "one",
        "two",
    ]


def test_the_file_takes_the_place_of_the_bar(file, capsys):
    list(track(range(3), "training"))
    assert tuple(capsys.readouterr()) == ("", "")
    assert file.is_file()


def test_without_a_length_the_total_is_unknown(file, monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    list(track((n for n in range(2)), "x"))
    assert [json.loads(line)["total"] for line in file.read_text(encoding="utf-8").splitlines()] == [None, None]


@pytest.mark.parametrize("value", [None, ""])
def test_a_bar_goes_to_stderr_alone(monkeypatch, capsys, tmp_path, value):
    monkeypatch.chdir(tmp_path)
    if value is None:
        monkeypatch.delenv(progress.VARIABLE, raising=False)
    else:
        monkeypatch.setenv(progress.VARIABLE, value)
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    assert list(track(range(3), "counting sheep", note=lambda: "loss 0.5")) == [0, 1, 2]
    out, err = capsys.readouterr()
    assert out == ""
    assert "counting sheep" in err
    assert "loss 0.5" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["file", "bar"])
def test_items_are_the_very_objects_in_order_and_drawn_when_asked_for(mode, file, monkeypatch, capsys):
    if mode == "bar":
        monkeypatch.delenv(progress.VARIABLE)
    items, drawn = [object() for _ in range(5)], []

    def source():
        for item in items:
            drawn.append(item)
            yield item

    tracked = track(source(), "x", total=5)
    assert drawn == []
    assert next(tracked) is items[0]
    assert len(drawn) == 1
    assert all(found is item for found, item in zip(tracked, items[1:], strict=True))


@pytest.mark.parametrize("mode", ["file", "bar"])
def test_a_loop_that_ends_early_or_fails_is_left_alone(mode, file, monkeypatch, capsys):
    if mode == "bar":
        monkeypatch.delenv(progress.VARIABLE)

    def broken():
        yield 1
        raise KeyError("the source itself")

    for item in track(range(10), "x"):
        if item == 3:
            break
    assert item == 3
    with pytest.raises(KeyError, match="the source itself"):
        list(track(broken(), "x"))
