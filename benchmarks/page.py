"""Writes `docs/benchmarks.md` with its pictures from `results.json`: the three engines, the peers, the limits."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from measuring import HERE

DOCS = HERE.parent / "docs"
PICTURES = DOCS / "benchmarks"
# Okabe and Ito's colours, which people with colour blindness tell apart.
OURS, THEIRS, LIMIT = "#0072B2", "#999999", "#E69F00"
Bars = Sequence[tuple[str, float, str]]


def write_page(results: Mapping[str, Any], table: str) -> None:
    """Writes the page.

    Args:
        results: of `run.py`.
        table: all rows in Markdown.
    """
    rows = results["rows"]
    PICTURES.mkdir(parents=True, exist_ok=True)
    parts = [
        "# Benchmarks",
        "Written by `make bench` (`benchmarks/run.py`): contestants take turns in one run, and figures are medians of "
        "rounds. What each row runs, and how, is in [benchmarks/README.md](../benchmarks/README.md).",
        *engines(rows),
        *limits(rows),
        *solving(rows),
        *memory(rows),
        "## Every row",
        table.replace("](", "](../benchmarks/"),
    ]
    (DOCS / "benchmarks.md").write_text("\n\n".join(part.rstrip() for part in parts) + "\n", encoding="utf-8")


def engines(rows: Mapping[str, Any]) -> list[str]:
    """PPO on CartPole by engine, beside the peers of each."""
    bars: list[tuple[str, float, str]] = []
    for name, label in (("ppo_throughput", "in-process"), ("ppo_workers", "2 Ray workers")):
        speeds = rows[name]["figures"]["env_steps_per_s"] if name in rows else {}
        for who, values in speeds.items():
            color = OURS if who == "jaxrl" else LIMIT if who == "plain loop" else THEIRS
            bars.append((f"{who}, {label}", statistics.median(values), color))
    for case, figures in rows.get("compiled_ppo", {}).get("figures", {}).items():
        for who, values in figures["steps_per_s"].items():
            named = "plain program" if who == "plain" else who
            bars.append((f"{named}, compiled, {case}", statistics.median(values), OURS if who == "jaxrl" else THEIRS))
    if not bars:
        return []
    picture = draw("engines", bars, "env steps per second", log=True)
    return [
        "## One policy, three engines",
        "PPO on CartPole-v1 with fragments of 128 steps, 4 epochs of 4 minibatches and networks of 64x64: environments "
        "stepped in-process, on two Ray actors, or compiled with acting and learning into one program. Blue: jaxrl.",
        picture,
    ]


def limits(rows: Mapping[str, Any]) -> list[str]:
    """What the parts cost alone, against the whole."""
    told = ["## The limits, and the share of them reached"]
    for case, figures in rows.get("compiled_limit", {}).get("figures", {}).items():
        parts = ", ".join(f"{name} {statistics.median(ms):.3g} ms" for name, ms in figures["ms"].items())
        share = statistics.median(figures["shares"])
        told.append(f"- Compiled, {case}: {share:.0%} of the limit: {parts} an update, each alone as one program.")
    for name, text in (
        (
            "ppo_throughput",
            "In-process: {share_of_plain_loop:.0%} of a plain loop that acts, steps and learns.",
        ),
        ("sampling", "Sampling alone: {ratio:.2f} x the time of stepping and the cheapest jitted act."),
        ("learner", "Learning alone: {ratio:.2f} x the time of the same maths as one plain jitted function."),
        ("sac_throughput", "SAC: {share_of_plain_update:.0%} of the plain update alone."),
    ):
        if name in rows:
            told.append("- " + text.format(**rows[name]["figures"]))
    return [told[0], "\n".join(told[1:])] if len(told) > 1 else []


def solving(rows: Mapping[str, Any]) -> list[str]:
    """Seconds to a solved problem, compilation included."""
    bars: list[tuple[str, float, str]] = []
    for name, label in (("time_to_solve", "PPO"), ("compiled_solve", "PPO compiled")):
        seconds = rows[name]["figures"]["seconds"] if name in rows else {}
        for who, values in seconds.items():
            one = statistics.median(v for v in values if v is not None) if isinstance(values, list) else values
            bars.append((f"{who}, {label}", one, OURS if who.startswith("jaxrl") else THEIRS))
    if not bars:
        return []
    return [
        "## Seconds until CartPole-v1 is solved",
        "From the making of the trainer until the last 100 episodes average 475, compiling included, imports left out.",
        draw("solved", bars, "seconds"),
    ]


def memory(rows: Mapping[str, Any]) -> list[str]:
    """Resident memory over time, where it was measured."""
    found = [name for name in ("memory", "memory_async") if name in rows and (HERE / f"{name}.png").exists()]
    if not found:
        return []
    pictures = [f"![memory over time](../benchmarks/{name}.png)" for name in found]
    return ["## Memory over time", *pictures]


def draw(name: str, bars: Bars, label: str, *, log: bool = False) -> str:
    """Draws horizontal bars; returns the Markdown that shows them."""
    figure = Figure(figsize=(8.5, 0.34 * len(bars) + 0.9), dpi=110, layout="constrained")
    axes = figure.subplots()
    places = range(len(bars))
    axes.barh(places, [value for _, value, _ in bars], color=[color for _, _, color in bars])
    axes.set_yticks(places, [text for text, _, _ in bars])
    axes.invert_yaxis()
    if log:
        axes.set_xscale("log")
    axes.margins(x=0.16)
    for place, (_, value, _) in zip(places, bars, strict=True):
        axes.annotate(
            f" {value:,.0f}" if value >= 100 else f" {value:.1f}", (value, place), va="center", fontsize="small"
        )
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURES / f"{name}.png")
    return f"![{label}](benchmarks/{name}.png)"


if __name__ == "__main__":
    from run import RESULTS
    from run import table as results_table

    loaded = json.loads(RESULTS.read_text(encoding="utf-8"))
    write_page(loaded, results_table(loaded))
