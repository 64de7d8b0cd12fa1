"""Run the benchmarks named on the command line, or all, and rewrite RECORDS.md and records.json."""

import importlib
import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.measure import Measurement, machine

HERE = Path(__file__).resolve().parent
NAMES = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def page(records: dict[str, dict[str, object]]) -> str:
    """RECORDS.md from records.json."""
    lines = [
        "# Records",
        "",
        "Written by `make bench`; every number is a median, with the smallest and the largest of n runs.",
    ]
    for name, record in records.items():
        where = ", ".join(f"{key} {value}" for key, value in record["machine"].items())
        lines += ["", f"## {name}", "", f"{record['measures']} ({record['date']}; {where})", ""]
        lines += ["| what | median | smallest | largest | unit | n | note |", "|---|---:|---:|---:|---|---:|---|"]
        for row in record["rows"]:
            numbers = " | ".join(f"{row[key]:.3g}" for key in ("median", "low", "high"))
            lines.append(f"| {row['what']} | {numbers} | {row['unit']} | {row['n']} | {row['note']} |")
    return "\n".join(lines) + "\n"


def main(names: list[str]) -> int:
    """Measure, print, and keep what was not measured this time."""
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        print(f"error: no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    store = HERE / "records.json"
    records = json.loads(store.read_text(encoding="utf-8")) if store.is_file() else {}
    for name in names or NAMES:
        module = importlib.import_module(f"benchmarks.bench_{name}")
        print(f"{name}: {module.__doc__.splitlines()[0]}", flush=True)
        rows: list[Measurement] = module.measure()
        for row in rows:
            print(f"  {row.what}: {row.median:.3g} {row.unit} [{row.low:.3g}, {row.high:.3g}], n = {row.n}  {row.note}")
        records[name] = {
            "measures": module.__doc__.splitlines()[0],
            "date": datetime.now(UTC).date().isoformat(),
            "machine": machine(),
            "rows": [asdict(row) for row in rows],
        }
    records = {name: records[name] for name in NAMES if name in records}
    store.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    (HERE / "RECORDS.md").write_text(page(records), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
