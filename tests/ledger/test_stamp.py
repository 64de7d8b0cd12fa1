"""Witness: a small tree changed one file at a time, and the fields that a reader of a stamp relies on."""

import json
import os
import platform
import re
import socket
import subprocess
import time

import pytest

from companion.ledger import paths, stamp

TREE = ("companion/a.py", "companion/lab/b.py", "notebooks/01_one.py", "notebooks/02_two.py", "claims/toy.toml")
FIELDS = {
    "commit": (str, type(None)),
    "dirty": bool,
    "source_hash": str,
    "python": str,
    "packages": dict,
    "platform": str,
    "processor": str,
    "device": str,
    "threads": int,
    "seed": int,
    "started": str,
    "wall_seconds": float,
    "peak_memory_bytes": int,
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A root with a package, two notebooks and one topic."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    for name in TREE:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}\n", encoding="utf-8")
    return tmp_path


def collect() -> dict:
    return stamp.collect(stamp.origin("01_one", "toy"), seed=7, started=stamp.now(), began=time.monotonic() - 2)


class TestSourceHash:
    @pytest.mark.parametrize("name", [name for name in TREE if "02_two" not in name])
    def test_a_change_changes_it_and_taking_it_back_restores_it(self, root, name):
        before = stamp.source_hash("01_one", "toy")
        text = (root / name).read_text(encoding="utf-8")
        (root / name).write_text(text + "#\n", encoding="utf-8")
        assert stamp.source_hash("01_one", "toy") != before
        (root / name).write_text(text, encoding="utf-8")
        os.utime(root / name, (0, 0))
        assert stamp.source_hash("01_one", "toy") == before

    def test_a_new_a_removed_and_a_renamed_file_change_it(self, root):
        seen = {stamp.source_hash("01_one", "toy")}
        (root / "companion/c.py").touch()
        seen.add(stamp.source_hash("01_one", "toy"))
        (root / "companion/c.py").rename(root / "companion/d.py")
        seen.add(stamp.source_hash("01_one", "toy"))
        (root / "companion/lab/b.py").unlink()
        seen.add(stamp.source_hash("01_one", "toy"))
        assert len(seen) == 4
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in seen)

    def test_another_chapter_and_what_is_no_source_do_not(self, root):
        before = stamp.source_hash("01_one", "toy")
        (root / "notebooks/02_two.py").write_text("other", encoding="utf-8")
        (root / "companion/notes.txt").write_text("other", encoding="utf-8")
        assert stamp.source_hash("01_one", "toy") == before
        assert stamp.source_hash("02_two", "toy") != before

    def test_it_does_not_know_where_the_checkout_lies(self, root, monkeypatch, tmp_path_factory):
        other = tmp_path_factory.mktemp("elsewhere")
        for name in TREE:
            (other / name).parent.mkdir(parents=True, exist_ok=True)
            (other / name).write_bytes((root / name).read_bytes())
        before = stamp.source_hash("01_one", "toy")
        monkeypatch.setattr(paths, "ROOT", other)
        assert stamp.source_hash("01_one", "toy") == before


class TestCollect:
    def test_every_field_is_there_with_its_type(self, root):
        found = collect()
        assert set(found) == set(FIELDS)
        for name, kind in FIELDS.items():
            assert isinstance(found[name], kind), name
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        assert set(found["packages"]) == set(stamp.PACKAGES)
        assert (found["seed"], found["python"]) == (7, platform.python_version())
        assert 2 <= found["wall_seconds"] < 60
        assert 1e7 < found["peak_memory_bytes"] < 1e12
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found["started"])
        assert found["source_hash"] == stamp.source_hash("01_one", "toy")

    def test_neither_the_hosts_name_nor_a_path_nor_the_user_is_in_it(self, root, monkeypatch):
        for module, name in ((platform, "node"), (socket, "gethostname"), (socket, "getfqdn")):
            monkeypatch.setattr(module, name, lambda *_: "host-of-the-author")
        monkeypatch.setenv("HOSTNAME", "host-of-the-author")
        monkeypatch.setenv("USER", "author-of-the-host")
        text = json.dumps(collect())
        assert "host-of-the-author" not in text
        assert "author-of-the-host" not in text
        assert str(root) not in text
        assert os.path.expanduser("~") + os.sep not in text
        assert not re.search(r"(?<![\w)])/\w+/\w", text)
        assert os.uname().nodename not in re.findall(r"[\w.-]+", text)

    def test_outside_git_there_is_no_commit(self, root, monkeypatch):
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(root.parent))
        found = collect()
        assert found["commit"] is None
        assert found["dirty"] is False

    def test_dirty_means_a_changed_source_and_nothing_else(self, root):
        def git(*arguments: str) -> str:
            who = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
            return subprocess.run(
                ["git", *who, *arguments], cwd=root, check=True, capture_output=True, text=True
            ).stdout

        git("init", "-q")
        git("add", ".")
        git("commit", "-q", "-m", "first")
        found = collect()
        assert found["commit"] == git("rev-parse", "HEAD").strip()
        assert found["dirty"] is False
        (root / "README.md").write_text("new", encoding="utf-8")
        assert collect()["dirty"] is False
        (root / "companion/a.py").write_text("new", encoding="utf-8")
        assert collect()["dirty"] is True

    def test_a_package_that_is_not_there_is_said_to_be(self, root, monkeypatch):
        monkeypatch.setattr(stamp, "PACKAGES", ("numpy", "no-such-package-anywhere"))
        assert collect()["packages"]["no-such-package-anywhere"] == "not installed"
