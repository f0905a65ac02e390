"""Runs the benchmarks: `python benchmarks/run.py [names] [--rounds N] [--quick] [--minutes M]`.

Writes `results.json`, the table in `README.md` and the page `docs/benchmarks.md`; rows that were not run keep their
last figures. `--quick` shows that everything works, and writes nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import time
from typing import Any

from measuring import HERE, Options, Row, load, machine, versions
from page import write_page

NAMES = (
    "ppo_throughput", "ppo_workers", "time_to_solve", "learner", "sampling", "ppo_pong", "dqn_throughput", "dqn_solve",
    "sac_throughput", "sac_solve", "replay", "asynchronous", "gather", "weights", "images", "import_time",
    "compiled_ppo", "compiled_limit", "compiled_solve", "memory", "memory_async",
)  # fmt: skip
RESULTS, README = HERE / "results.json", HERE / "README.md"
BEGIN, END = "<!-- results: written by run.py -->", "<!-- end of results -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which, of {', '.join(NAMES)}; none: all")
    parser.add_argument("--rounds", type=int, help="rounds of alternation (seeds, for times to a solved problem)")
    parser.add_argument("--quick", action="store_true", help="short runs whose figures mean nothing; writes nothing")
    parser.add_argument("--minutes", type=float, default=30.0, help="of each of the two memory runs")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in NAMES]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(NAMES)}")
    options = Options(rounds=arguments.rounds, quick=arguments.quick, minutes=arguments.minutes)

    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"rows": {}}
    for name in arguments.names or NAMES:
        print(f"{name} ...", flush=True)
        before = load()
        row: Row = importlib.import_module(name).measure(options)
        print(f"  {row.measured}\n  target {row.target}: {verdict(row.met)}")
        for note in row.notes:
            print(f"  ({note})")
        measured = {"date": time.strftime("%Y-%m-%d"), "load": [round(before, 1), round(load(), 1)]}
        results["rows"][name] = {**dataclasses.asdict(row), **measured}
        if not options.quick:
            results |= {"machine": machine(), "versions": versions()}
            RESULTS.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            write_table(results)
            write_page(results, table(results))


def verdict(met: bool | None) -> str:
    return {True: "met", False: "MISSED", None: "no peer to compare with"}[met]


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    libraries = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [
        f"{results['machine']}. {libraries}.",
        "",
        "| work | target | measured | | date |",
        "| --- | --- | --- | --- | --- |",
    ]
    rows = {name: results["rows"][name] for name in NAMES if name in results["rows"]}
    lines += [
        f"| {row['work']} | {row['target']} | {row['measured']} | {verdict(row['met'])} | {row['date']} |"
        for row in rows.values()
    ]
    notes = [f"- `{name}`: {note}." for name, row in rows.items() for note in row["notes"]]
    loads = ", ".join(f"{name} {row['load'][0]}" for name, row in rows.items())
    return "\n".join([*lines, "", *notes, f"- Load average (1 minute) as each began: {loads}.", ""])


def write_table(results: dict[str, Any]) -> None:
    text = README.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    README.write_text(f"{head}{BEGIN}\n\n{table(results)}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
