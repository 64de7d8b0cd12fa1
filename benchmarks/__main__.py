"""Run the benchmarks named on the command line, or all but `NAMED`, and rewrite RECORDS.md and records.json."""

import importlib
import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.measure import Measurement, machine

HERE = Path(__file__).resolve().parent
NAMES = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
NAMED = ("cold", "masked")  # only when named: the first takes most of an hour, the second is of a GPU
HEAD = """# Records

Written by `make bench`; every number is a median, with the smallest and the largest of n runs. *Ratio* says how many
times better than its peer a row is, both measured in the same run. *Floor* is the least that the machine could take, by
the rates of matrix products and of copies measured beside it, in the row's unit, with the row's distance from it. A
goal is a bound of the ratio where there is one, else of the median; where it is missed, the reason and the next idea
stand below the table.
"""


def row(entry: dict) -> str:
    """One line of a table, from a row of records.json."""
    found = Measurement(**entry)
    numbers = [f"{value:.3g}" for value in (found.median, found.low, found.high)]
    ratio = "" if found.ratio is None else f"{found.ratio:.3g} × {found.peer}"
    least, most = found.goal
    bounds = [f"{sign} {bound:g}" for sign, bound in (("≥", least), ("≤", most)) if bound is not None]
    goal = ", ".join(bounds) + {None: "", True: ": met", False: ": **missed**"}[found.met]
    limit = ""
    if found.floor:
        limit = f"{found.floor:.2g} ({found.floor_says}; {found.median / found.floor:.2g} times it)"
    cells = [found.what, *numbers, found.unit, str(found.n), ratio, goal, limit, found.note]
    return f"| {' | '.join(cells)} |"


def page(records: dict[str, dict]) -> str:
    """RECORDS.md from records.json."""
    lines = [HEAD.rstrip("\n")]
    for name, record in records.items():
        where = ", ".join(f"{key} {value}" for key, value in record["machine"].items())
        lines += ["", f"## {name}", "", f"{record['measures']} ({record['date']}; {where})", ""]
        lines += ["| what | median | smallest | largest | unit | n | ratio | goal | floor | note |"]
        lines += ["|---|---:|---:|---:|---|---:|---|---|---|---|"]
        lines += [row(entry) for entry in record["rows"]]
        missed = [found for found in (Measurement(**entry) for entry in record["rows"]) if found.met is False]
        lines += [""] * bool(missed) + [f"* Missed, {found.what}: {found.missed}" for found in missed]
    return "\n".join(lines) + "\n"


def main(names: list[str]) -> int:
    """Measure, print, and keep what was not measured this time."""
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        print(f"error: no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    store = HERE / "records.json"
    for name in names or [name for name in NAMES if name not in NAMED]:
        module = importlib.import_module(f"benchmarks.bench_{name}")
        print(f"{name}: {module.__doc__.splitlines()[0]}", flush=True)
        rows: list[Measurement] = module.measure()
        for found in rows:
            print(f"  {row(asdict(found))}", flush=True)
        records = json.loads(store.read_text(encoding="utf-8")) if store.is_file() else {}
        records[name] = {
            "measures": module.__doc__.splitlines()[0],
            "date": datetime.now(UTC).date().isoformat(),
            "machine": machine(),
            "rows": [asdict(found) for found in rows],
        }
        # after each: what was measured is kept, whatever happens to the next
        records = {name: records[name] for name in NAMES if name in records}
        store.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
        (HERE / "RECORDS.md").write_text(page(records), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
