"""The command line of `tables`: ``python -m companion.lab.masked.tables CELL``, or without ``.tables``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from companion.lab.masked import tables
from companion.lab.masked.architecture import Shape


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, run one cell, say what came out; 0 if it went well."""
    cells = tables.cells()
    parser = argparse.ArgumentParser(
        "python -m companion.lab.masked.tables", description="Train one network of the tables and judge it."
    )
    parser.add_argument("cell", help="one of " + ", ".join(cells))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, help="updates, with the schedule stretched over them (default 30,000)")
    parser.add_argument("--batch", type=int, help="sentences in an update (default 4,096)")
    parser.add_argument("--micro", type=int, help="sentences in memory at once (default all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder of results and states (default _build/gpu/masked)")
    parser.add_argument("--tiny", action="store_true", help="two layers of width 16, judged on little: try the way out")
    given = parser.parse_args(arguments)
    if given.cell not in cells:
        parser.error(f"cell: expected one of {', '.join(cells)}, found {given.cell!r}")
    if min(number for number in (given.steps, given.batch, given.micro, 1) if number is not None) < 1:
        parser.error("--steps, --batch and --micro: expected at least 1")
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device cuda: found no GPU that torch can use; take --device cpu --tiny to try the way out")
    cell = cells[given.cell]
    options = tables.recipe(cell.algorithm, given.steps or 30_000, given.batch or 4096)
    cell = replace(cell, options=replace(options, checkpoint_every=min(1000, options.steps)))
    if given.tiny:
        shape = Shape(tables.WORDS, tables.LENGTH, 16, 2, 2, padded=cell.data == "pcfg")
        cell = replace(cell, shape=shape, judged=tables.Judged(200, 20, (20, 100), 100, 16))
    try:
        result = tables.run(cell, device=given.device, seed=given.seed, micro=given.micro, folder=given.out)
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except torch.cuda.OutOfMemoryError:
        half = (given.micro or options.batch_size) // 2
        print(f"error: the GPU's memory is too small for this batch; take --micro {half}", file=sys.stderr)
        return 1
    print(f"{cell.name}: loss {result['loss']:.4f}, floor {result['floor']:.4f}, accuracy {result['accuracy']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
