"""Witness: lines written by hand, as `companion.progress.track` writes them, against what is shown."""

import io
import json

from companion import progress
from companion.ledger.watch import Watch


def test_a_log_reads_which_cell_and_how_far_its_training_is(tmp_path, monkeypatch):
    lines = io.StringIO()
    monkeypatch.setattr("sys.stderr", lines)
    monkeypatch.setattr("companion.ledger.watch.LINE_EVERY", 0.02)
    file = tmp_path / "progress.jsonl"
    with Watch("01_one (cpu)", file, 7) as watch:
        watch.cell()
        monkeypatch.setenv(progress.VARIABLE, str(file))
        list(progress.track(range(6000), "training", note=lambda: "loss -9.2"))
        assert watch.state() == "cell 1 of 7, training 6,000 of 6,000 (loss -9.2)"
        while "training" not in lines.getvalue():
            pass
        watch.cell()
        assert watch.state() == "cell 2 of 7"
    first, *between, last = lines.getvalue().splitlines()
    assert first == "01_one (cpu): 7 cells"
    assert any("cell 1 of 7, training 6,000 of 6,000 (loss -9.2)" in line for line in between)
    assert last.startswith("01_one (cpu): done after")


def test_half_a_line_waits_for_its_other_half(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    file = tmp_path / "progress.jsonl"
    watch = Watch("x", file, 1)
    whole = json.dumps({"what": "probe", "done": 1, "total": None, "note": ""}) + "\n"
    file.write_text(whole[:9])
    assert watch.state() == "cell 0 of 1"
    file.write_text(whole)
    assert watch.state() == "cell 0 of 1, probe 1"
