"""Stage the book's source with the executed chapters, build it strictly, put the finished site into place.

The build is incremental, yet a build that failed or was killed leaves nothing to build on: a page whose warning was
shown once would otherwise not be read, nor warn, again.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def mirror(wanted: dict[Path, Path], target: Path) -> None:
    """Make `target` hold exactly the files `wanted` (relative name -> source), leaving unchanged ones alone."""
    for file in sorted(target.rglob("*"), reverse=True):
        if file.is_dir() and not any(file.iterdir()):
            file.rmdir()
        elif file.is_file() and file.relative_to(target) not in wanted:
            file.unlink()
    for name, source in wanted.items():
        copy = target / name
        if copy.is_file() and copy.read_bytes() == source.read_bytes():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)


def sources(profile: str) -> dict[Path, Path]:
    """What the book is made of: settings, hand-written pages, executed chapters."""
    wanted = {Path(name): ROOT / name for name in ("_config.yml", "_toc.yml")}
    for file in sorted((ROOT / "book").rglob("*")):
        name = file.relative_to(ROOT)
        if file.is_file() and name.parts[:2] != ("book", "chapters") and "__pycache__" not in name.parts:
            wanted[name] = file
    for file in sorted((ROOT / "_build" / profile / "chapters").glob("[0-9][0-9]_*.ipynb")):
        if (ROOT / "notebooks" / f"{file.stem}.py").is_file():
            wanted[Path("book", "chapters", file.name)] = file
    return wanted


def main(profile: str) -> int:
    """Build the book of one profile; the exit status of jupyter-book."""
    base = ROOT / "_build" / profile
    source, work, html = base / "source", base / "book", base / "html"
    marker = base / ".book-building"
    if marker.exists():
        shutil.rmtree(work, ignore_errors=True)
    base.mkdir(parents=True, exist_ok=True)
    marker.touch()
    source.mkdir(parents=True, exist_ok=True)
    mirror(sources(profile), source)
    print(f"book ({profile}): building", file=sys.stderr, flush=True)
    start = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", start, "build", str(source), "--path-output", str(work)]
    environment = dict(os.environ, COMPANION_PROFILE=profile, PYTHONDONTWRITEBYTECODE="1")
    strictly = [*command, "-W", "-n", "--keep-going", "-q"]
    chatter = base / "book.log"  # warnings and errors go to stderr and are seen at once
    with chatter.open("w", encoding="utf-8") as out:
        code = subprocess.call(strictly, env=environment, stdin=subprocess.DEVNULL, stdout=out)
    if code != 0:
        print("\n".join(chatter.read_text(encoding="utf-8").splitlines()[-15:]), file=sys.stderr)
        print(f"error: the book does not build without warnings (profile {profile}); they stand above", file=sys.stderr)
        return code
    fresh, old = base / "html.new", base / "html.old"
    for left in (fresh, old):
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(work / "_build" / "html", fresh)
    if html.exists():
        html.rename(old)
    fresh.rename(html)
    (html / "index.html").touch()  # Sphinx leaves an unchanged page's date alone, Snakemake goes by it
    shutil.rmtree(old, ignore_errors=True)
    marker.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
