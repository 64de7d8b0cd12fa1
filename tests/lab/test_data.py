"""Witnesses: fault injection on real and forged files, known sums of the published sets, torchvision's own formats."""

import gzip
import hashlib
import pickle
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.error
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torchvision import datasets
from torchvision.utils import save_image

from companion.lab import data, fetch
from companion.lab.data import DataError, generated, load

LABELS = "t10k-labels-idx1-ubyte"


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """A folder with the real Fashion-MNIST: the copy of this machine, or one fetched for the tests."""
    return fetch.locate() or fetch.fetch(tmp_path_factory.mktemp("fetched"))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty store, no system copy, and sources that do not answer."""

    def dead(scratch):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "store"))
    monkeypatch.setattr(fetch, "SYSTEM", tmp_path / "system")
    monkeypatch.setattr(fetch, "_from_torchvision", dead)
    monkeypatch.setattr(fetch, "_from_debian", dead)
    return tmp_path / "store"


def copied(original, folder):
    """The real set again, by links, with the test labels as a file of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in original.glob("*ubyte*"):
        (folder / path.name).symlink_to(path)
    content = fetch.read(original, LABELS)
    header = bytes([0, 0, 8, 1]) + len(content).to_bytes(4, "big")
    for path in folder.glob(f"{LABELS}*"):
        path.unlink()
    (folder / LABELS).write_bytes(header + content.numpy().tobytes())
    return folder


def everything_below(folder):
    return [path for path in folder.rglob("*") if not path.is_dir() or path.name.startswith(".")]


class TestFashionMnist:
    def test_published_content(self, original):
        train, test = load("fashion-mnist", root=original), load("fashion-mnist", "test", root=original)
        assert train.images.shape == (60000, 1, 28, 28)
        assert test.images.shape == (10000, 1, 28, 28)
        assert train.labels.bincount().tolist() == [6000] * 10
        assert test.labels.bincount().tolist() == [1000] * 10
        assert train.float().mean().item() == pytest.approx(0.2860, abs=5e-5)
        assert train.classes[int(train.labels[0])] == "Ankle boot"

    def test_places_are_searched_in_order(self, original, elsewhere, monkeypatch):
        copied(original, fetch.SYSTEM)
        assert fetch.locate() == fetch.SYSTEM
        mine = copied(original, elsewhere / "FashionMNIST" / "raw")
        assert fetch.locate() == mine
        monkeypatch.delenv("COMPANION_DATA")
        monkeypatch.setenv("XDG_CACHE_HOME", str(elsewhere.parent / "cache"))
        cached = copied(original, elsewhere.parent / "cache" / "ssl-theory-companion" / "fashion-mnist")
        assert fetch.locate() == cached
        assert fetch.locate(elsewhere) == mine

    def test_fetched_once_and_verified(self, original, elsewhere, monkeypatch, capsys):
        monkeypatch.setattr(fetch, "_from_debian", lambda scratch: copied(original, scratch / "unpacked"))
        assert data.main(["fashion-mnist"]) == 0
        assert str(elsewhere / "fashion-mnist") in capsys.readouterr().out
        assert len(everything_below(elsewhere)) == 4
        monkeypatch.undo()
        monkeypatch.setenv("COMPANION_DATA", str(elsewhere))
        assert len(load("fashion-mnist", "test")) == 10000


FAULTS = {
    "truncated": (lambda content: content[:-1], "10008 bytes", "10007 bytes"),
    "corrupted": (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "SHA-256", ""),
    "empty": (lambda content: b"", "10008 bytes", "0 bytes"),
}
PACKED_FAULTS = {
    "truncated gzip": (lambda content: gzip.compress(content)[:-20], "gzip", "broken"),
    "no gzip": (lambda content: content, "gzip", "broken"),
    "corrupted gzip": (
        lambda content: gzip.compress(content)[:40] + b"??????" + gzip.compress(content)[46:],
        "gzip",
        "broken",
    ),
}


class TestDamage:
    @pytest.mark.parametrize("fault", FAULTS)
    def test_plain(self, fault, original, elsewhere):
        self.check(copied(original, elsewhere / "fashion-mnist"), "", *FAULTS[fault])

    @pytest.mark.parametrize("fault", PACKED_FAULTS)
    def test_packed(self, fault, original, elsewhere):
        self.check(copied(original, elsewhere / "fashion-mnist"), ".gz", *PACKED_FAULTS[fault])

    def check(self, folder, ending, spoil, expected, found):
        path = folder / LABELS
        content = path.read_bytes()
        path.unlink()
        path = path.with_name(LABELS + ending)
        path.write_bytes(spoil(content))
        before = path.read_bytes()
        with pytest.raises(DataError) as error:
            load("fashion-mnist", "test")
        message = str(error.value)
        assert message.startswith(f"{path}: expected ")
        assert expected in message.split("found")[0]
        assert found in message.split("found")[1]
        assert "python -m companion.lab.data fashion-mnist" in message
        assert "\n" not in message
        assert path.read_bytes() == before, "the user's file was touched"

    def test_missing_file(self, original, elsewhere):
        folder = copied(original, elsewhere / "fashion-mnist")
        (folder / LABELS).unlink()
        with pytest.raises(DataError, match="no such file"):
            load("fashion-mnist", "test")
        assert data.main(["fashion-mnist"]) == 1

    @pytest.mark.parametrize("own_root", [False, True])
    @pytest.mark.parametrize("layout", fetch.LAYOUTS)
    def test_the_printed_command_mends(self, own_root, layout, original, elsewhere, monkeypatch):
        top = elsewhere.parent / "my data" if own_root else elsewhere
        root = top if own_root else None
        folder = copied(original, top / layout)
        (folder / LABELS).write_bytes(b"nonsense")
        with pytest.raises(DataError) as error:
            load("fashion-mnist", "test", root=root)
        move, _, command = str(error.value).split("Mend it with: ")[1].partition(" && ")
        subprocess.run(shlex.split(move), check=True)
        monkeypatch.setattr(fetch, "_from_torchvision", lambda scratch: copied(original, scratch / "raw"))
        assert data.main(shlex.split(command)[3:]) == 0
        assert len(load("fashion-mnist", "test", root=root)) == 10000
        assert (folder.with_name(folder.name + ".damaged") / LABELS).read_bytes() == b"nonsense"

    def test_unreadable(self, original, elsewhere):
        path = copied(original, elsewhere / "fashion-mnist") / LABELS
        path.unlink()
        path.mkdir()
        with pytest.raises(DataError, match="expected a readable file"):
            load("fashion-mnist", "test")

    def test_damaged_system_copy(self, original, elsewhere):
        (copied(original, fetch.SYSTEM) / LABELS).write_bytes(b"")
        with pytest.raises(DataError, match="apt-get install --reinstall"):
            load("fashion-mnist", "test")


class TestFetching:
    def test_no_source_answers(self, elsewhere, capsys):
        assert data.main(["fashion-mnist"]) == 1
        error = capsys.readouterr().err
        assert "no route to host" in error
        assert "COMPANION_DATA" in error
        assert error.count("\n") == 1
        assert everything_below(elsewhere) == []

    def test_an_empty_folder_is_filled(self, tmp_path):
        (tmp_path / "set").mkdir()
        fetch.install(tmp_path / "set", lambda folder: (folder / "whole").touch())
        assert (tmp_path / "set" / "whole").exists()

    def test_missing_root_is_not_filled(self, elsewhere):
        with pytest.raises(DataError, match="--root"):
            load("fashion-mnist", root=elsewhere)
        assert not elsewhere.exists()

    @pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
    def test_interrupted(self, interruption, elsewhere, monkeypatch):
        def halfway(scratch):
            (scratch / LABELS).write_bytes(b"half")
            raise interruption("cut off")

        monkeypatch.setattr(fetch, "_from_torchvision", halfway)
        with pytest.raises((KeyboardInterrupt, DataError)):
            fetch.fetch()
        assert everything_below(elsewhere) == []

    def test_a_forged_download_is_refused(self, elsewhere, monkeypatch):
        def forged(scratch):
            for name, (size, _) in fetch.FILES.items():
                (scratch / name).write_bytes(bytes(size))
            return scratch

        monkeypatch.setattr(fetch, "_from_torchvision", forged)
        with pytest.raises(DataError, match="SHA-256"):
            fetch.fetch()
        assert everything_below(elsewhere) == []

    def test_killed(self, tmp_path):
        script = (
            "import sys, time; from pathlib import Path; from companion.lab import fetch\n"
            "def download(folder): (folder / 'half').write_bytes(b'x'); print('half', flush=True); time.sleep(600)\n"
            "fetch.install(Path(sys.argv[1]), download)"
        )
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "set")],
            stdout=subprocess.PIPE,
            cwd=Path(data.__file__).parents[2],
        )
        with child:
            assert child.stdout.readline() == b"half\n"
            child.send_signal(signal.SIGKILL)
        assert not (tmp_path / "set").exists()
        fetch.install(tmp_path / "set", lambda folder: (folder / "whole").touch())
        assert [path.name for path in tmp_path.rglob("*")] == ["set", "whole"]

    def test_two_at_once_fetch_once(self, tmp_path):
        calls = []

        def download(folder):
            calls.append(folder)
            time.sleep(0.1)
            (folder / "whole").touch()

        threads = [threading.Thread(target=fetch.install, args=(tmp_path / "set", download)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(calls) == 1

    def test_unwritable_place(self, tmp_path, monkeypatch):
        (tmp_path / "file").touch()
        monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "file"))
        with pytest.raises(DataError, match="COMPANION_DATA"):
            fetch.fetch(fetch.store())


class TinyCifar(datasets.CIFAR10):
    """CIFAR-10's format with four images; `download` writes them."""

    content = pickle.dumps({"data": np.arange(4 * 3072).reshape(4, -1).astype(np.uint8), "labels": [0, 1, 2, 3]})
    names = pickle.dumps({"label_names": ["a", "b", "c", "d"]})
    train_list: ClassVar = [["batch", hashlib.md5(content).hexdigest()]]
    test_list: ClassVar = train_list
    meta: ClassVar = {"filename": "names", "key": "label_names", "md5": hashlib.md5(names).hexdigest()}

    def download(self):
        folder = Path(self.root) / self.base_folder
        folder.mkdir(exist_ok=True)
        (folder / "batch").write_bytes(self.content)
        (folder / "names").write_bytes(self.names)


class CutOffCifar(TinyCifar):
    def download(self):
        super().download()
        raise urllib.error.URLError("connection reset")


class TestTorchvisionSets:
    def test_cifar_is_fetched_and_read(self, elsewhere, monkeypatch):
        monkeypatch.setitem(data.TORCHVISION, "cifar10", TinyCifar)
        found = load("cifar10")
        assert found.images.shape == (4, 3, 32, 32)
        assert found.images[0].flatten()[:300].tolist() == [i % 256 for i in range(300)]  # channel first, as on disk
        assert found.labels.tolist() == [0, 1, 2, 3]
        assert found.classes == ("a", "b", "c", "d")

    def test_cifar_corrupted(self, elsewhere, monkeypatch):
        monkeypatch.setitem(data.TORCHVISION, "cifar10", TinyCifar)
        load("cifar10")
        (elsewhere / "cifar10" / "cifar-10-batches-py" / "batch").write_bytes(b"")
        with pytest.raises(DataError, match=r"mv .* && python -m companion.lab.data cifar10"):
            load("cifar10", "test")

    def test_cifar_cut_off(self, elsewhere, monkeypatch):
        monkeypatch.setitem(data.TORCHVISION, "cifar10", CutOffCifar)
        with pytest.raises(DataError, match="connection reset"):
            load("cifar10")
        assert everything_below(elsewhere) == []
        assert data.main(["cifar10"]) == 1

    def test_stl(self, elsewhere, monkeypatch):
        class TinyStl(datasets.STL10):
            def _check_integrity(self):
                return True

        folder = elsewhere / "stl10" / datasets.STL10.base_folder
        folder.mkdir(parents=True)
        (folder / "class_names.txt").write_text("a\nb\n")
        np.arange(2 * 3 * 96 * 96).astype(np.uint8).tofile(folder / "unlabeled_X.bin")
        monkeypatch.setitem(data.TORCHVISION, "stl10", TinyStl)
        found = load("stl10", "unlabeled")
        assert found.images.shape == (2, 3, 96, 96)
        assert found.labels.tolist() == [-1, -1]


class TestBundledSets:
    def test_digits(self):
        train, test = load("digits"), load("digits", "test")
        assert train.images.shape == (1437, 1, 8, 8)
        assert test.images.shape == (360, 1, 8, 8)
        assert int(train.images.max()) == 255
        assert torch.equal(load("digits").images, train.images)
        assert min(test.labels.bincount()) >= 25

    def test_image_folder(self, tmp_path):
        for colour, name in enumerate(("black", "white")):
            for number in range(2):
                (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
                save_image(torch.full((3, 20, 30), float(colour)), tmp_path / "train" / name / f"{number}.png")
        found = load("folder", root=tmp_path, size=16)
        assert found.images.shape == (4, 3, 16, 16)
        assert found.images.flatten(1).float().mean(1).tolist() == [0, 0, 255, 255]
        assert found.labels.tolist() == [0, 0, 1, 1]
        assert found.classes == ("black", "white")

    @pytest.mark.parametrize("root", [None, "nowhere"])
    def test_image_folder_missing(self, root, tmp_path):
        with pytest.raises(DataError, match="one sub-folder a class"):
            load("folder", root=root and tmp_path / root)

    def test_generated_classes_are_told_apart_by_the_nearest_mean(self):
        train, test = generated(80, (1, 6, 6)), generated(40, (1, 6, 6), split="test")
        means = torch.stack([train.flat()[train.labels == c].mean(0) for c in range(4)])
        assert torch.equal(torch.cdist(test.flat(), means).argmin(1), test.labels)
        assert not torch.equal(train.images[:40], test.images)

    @pytest.mark.parametrize(("name", "split"), [("mnist", "train"), ("digits", "val"), ("cifar10", "unlabeled")])
    def test_unknown(self, name, split):
        with pytest.raises(DataError, match="expected one of"):
            load(name, split)
