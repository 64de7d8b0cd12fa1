"""Fashion-MNIST on disk: find it, fetch it whole or not at all, and verify every byte of it."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import os
import shutil
import socket
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor
from torchvision import datasets

SYSTEM = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it
LAYOUTS = ("fashion-mnist", "FashionMNIST/raw", "")  # where the files may lie below a root: ours, torchvision's, flat
STALL = 8.0  # seconds without an answer after which a mirror counts as unreachable

# Name: (bytes, SHA-256), both of the uncompressed file, because the gzip of Debian differs from that of upstream.
FILES = {
    "train-images-idx3-ubyte": (47040016, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
    "train-labels-idx1-ubyte": (60008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
    "t10k-images-idx3-ubyte": (7840016, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
    "t10k-labels-idx1-ubyte": (10008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
}


class DataError(ValueError):
    """A data set is missing, damaged or out of reach; the message names the file and the command that mends it."""


def store() -> Path:
    """The folder that fetched sets live in: ``$COMPANION_DATA``, else the user's cache."""
    if chosen := os.environ.get("COMPANION_DATA"):
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "ssl-theory-companion"


def locate(root: str | Path | None = None) -> Path | None:
    """The first folder that holds Fashion-MNIST or a part of it; None if there is none.

    With `root` only that folder is searched; without it ``$COMPANION_DATA`` or the user's cache, then the system copy.
    A folder may hold the four IDX files itself, or below ``fashion-mnist`` or ``FashionMNIST/raw`` (torchvision).
    """
    tops = [Path(root).expanduser()] if root is not None else [store(), SYSTEM]
    folders = [top / below for top in tops for below in LAYOUTS]
    return next((folder for folder in folders if any(_path(folder, name).exists() for name in FILES)), None)


def fetch(root: str | Path | None = None) -> Path:
    """Return a folder with all of Fashion-MNIST, verified; fetch it where no copy is found.

    torchvision's mirror is asked first; where it does not answer, Debian's package is downloaded and unpacked, which
    needs no root. A set appears in its place by one renaming, complete and verified, or not at all.

    Args:
        root: look for the set, and put it, here instead of the places of `locate`.

    Returns:
        The folder.

    Raises:
        DataError: a copy is damaged, or no source can be reached.
    """
    top = Path(root).expanduser() if root is not None else store()
    folder = locate(root) or install(top / "fashion-mnist", _download)
    for name in FILES:
        read(folder, name)
    return folder


def install(folder: Path, download: Callable[[Path], None]) -> Path:
    """Let `download` fill a hidden folder beside `folder`, and rename it to `folder` only when that has succeeded.

    One process at a time does so; another one waits and finds the work done. What a killed one left is swept.

    Args:
        folder: where the set shall be.
        download: writes the set into the folder that it is given.

    Returns:
        `folder`.

    Raises:
        DataError: the place cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(folder.parent, os.W_OK):
            raise PermissionError("permission denied")
        handle = os.open(folder.parent, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"{folder.parent}: expected a writable folder, found {error}; set COMPANION_DATA") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for left in folder.parent.glob(".fetch-*"):
            shutil.rmtree(left, ignore_errors=True)
        if not (folder.exists() and any(folder.iterdir())):
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as hidden:
                filled = Path(hidden) / folder.name
                filled.mkdir()
                download(filled)
                filled.replace(folder)
    finally:
        os.close(handle)
    return folder


def read(folder: Path, name: str) -> UInt8[Tensor, ...]:
    """Read one IDX file of Fashion-MNIST, compressed or not, and verify its SHA-256.

    Args:
        folder: where the file, or the file with the ending ``.gz``, lies.
        name: one of `FILES`.

    Returns:
        (n, 28, 28) images or (n,) labels, uint8.

    Raises:
        DataError: the file is missing, truncated or not what was published.
    """
    path, (size, digest) = _path(folder, name), FILES[name]
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise damaged(path, f"{size} bytes", "no such file") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise damaged(path, f"gzip of {size} bytes", f"broken gzip: {error}") from None
    except OSError as error:
        raise damaged(path, "a readable file", str(error)) from None
    if len(content) != size:
        raise damaged(path, f"{size} bytes uncompressed", f"{len(content)} bytes")
    if (found := hashlib.sha256(content).hexdigest()) != digest:
        raise damaged(path, f"SHA-256 {digest} uncompressed", found)
    axes = content[3]  # IDX: two zero bytes, the type (8 = uint8), the number of axes, one big-endian length an axis
    shape = [int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(axes)]
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=4 + 4 * axes).reshape(shape)


def damaged(path: Path, expected: str, found: str) -> DataError:
    """The error for a file that is not what it should be. The user's file is never removed for them."""
    folder = path.parent
    mend = f"mv '{folder}' '{folder}.damaged' && python -m companion.lab.data fashion-mnist"
    if folder == SYSTEM:
        mend = "sudo apt-get install --reinstall dataset-fashion-mnist"
    elif not folder.is_relative_to(store()):
        below = next(below for below in LAYOUTS if f"{folder}/".endswith(f"/{below}/") or not below)
        mend += f" --root '{folder.parents[below.count('/')] if below else folder}'"
    return DataError(f"{path}: expected {expected}, found {found}. Mend it with: {mend}")


@contextmanager
def quiet_network() -> Iterator[None]:
    """No progress bar, and an error instead of a hang when a server does not answer for `STALL` seconds."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)


def _path(folder: Path, name: str) -> Path:
    plain = folder / name
    return plain if plain.exists() else folder / f"{name}.gz"


def _download(folder: Path) -> None:
    reasons = []
    for source in (_from_torchvision, _from_debian):
        try:
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                found = source(Path(scratch))
                for name in FILES:
                    read(found, name)
                    path = _path(found, name)
                    path.replace(folder / path.name)
            return
        except (OSError, RuntimeError, DataError, subprocess.SubprocessError) as error:
            reasons.append(f"{source.__name__[6:]}: {' '.join(str(error).split())[:300]}")
    raise DataError(
        f"fashion-mnist: expected one source that answers, found none ({'; '.join(reasons)}). On a machine with a "
        "network: python -m companion.lab.data fashion-mnist --root DIR; then copy DIR here and set COMPANION_DATA=DIR"
    )


def _from_torchvision(scratch: Path) -> Path:
    with quiet_network():
        datasets.FashionMNIST(scratch, download=True)
    return scratch / "FashionMNIST" / "raw"


def _from_debian(scratch: Path) -> Path:
    def run(*command: str) -> None:
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")

    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise RuntimeError("no apt-get and dpkg-deb on this system")
    fast = ("-o", f"Acquire::http::Timeout={STALL:.0f}", "-o", "Acquire::Retries=0", "-o", "APT::Sandbox::User=root")
    try:
        run("apt-get", *fast, "download", "dataset-fashion-mnist")
    except RuntimeError:
        if os.geteuid():  # only root may fill an empty package list
            raise
        run("apt-get", *fast, "update")
        run("apt-get", *fast, "download", "dataset-fashion-mnist")
    (package,) = scratch.glob("*.deb")
    run("dpkg-deb", "-x", str(package), ".")
    return scratch / SYSTEM.relative_to("/")
