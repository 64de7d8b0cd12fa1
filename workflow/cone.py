"""What a chapter depends on: the files of the package that its notebook imports, directly or not, and its claims."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGE = "companion"


def _tree(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise ValueError(f"{file}, line {error.lineno}: {error.msg}; mend it, then call again") from error


def _imported(file: Path, root: Path) -> Iterator[str]:
    """Dotted names that may be modules of the package, relative imports resolved."""
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = file.relative_to(root).with_suffix("").parts[: -node.level]
                base = ".".join((*package, base)).rstrip(".")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _files(name: str, root: Path) -> Iterator[Path]:
    """The files that importing a dotted name runs: every package's __init__ on the way, and the module."""
    parts = name.split(".")
    if parts[0] != PACKAGE:
        return
    for depth in range(1, len(parts) + 1):
        stem = root.joinpath(*parts[:depth])
        for file in (stem / "__init__.py", stem.with_suffix(".py")):
            if file.is_file():
                yield file


def cone(sources: Iterable[Path], root: Path) -> list[Path]:
    """Package files in the import cone of some source files.

    Args:
        sources: notebooks or other Python files under `root`.
        root: the checkout.

    Returns:
        Sorted paths relative to `root`; a file that is not imported is not among them.
    """
    seen: set[Path] = set()
    waiting = [root / source for source in sources]
    while waiting:
        file = waiting.pop()
        for name in _imported(file, root):
            fresh = [f for f in _files(name, root) if f not in seen]
            seen.update(fresh)
            waiting += fresh
    return sorted(file.relative_to(root) for file in seen)


def topic(notebook: Path) -> str:
    """The claims file that a notebook opens by ``ledger.begin(..., claims="topic")``."""
    for node in ast.walk(_tree(notebook)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("begin"):
            for keyword in node.keywords:
                if keyword.arg == "claims" and isinstance(keyword.value, ast.Constant):
                    return str(keyword.value.value)
    raise ValueError(f'{notebook} never calls ledger.begin("{notebook.stem}", claims="...", ...); a chapter has claims')
