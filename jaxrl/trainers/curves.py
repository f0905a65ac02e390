"""Learning curves with matplotlib, drawn on figures of their own, so that none has to be closed."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from jaxrl.terminal import printable_name
from jaxrl.trainers.history import History
from jaxrl.trainers.stopping import nearest_keys
from jaxrl.types import JaxrlError

LABELS = {
    "episode_reward_mean": "mean episode reward",
    "episode_reward_max": "highest episode reward",
    "episode_reward_min": "lowest episode reward",
    "episode_len_mean": "mean episode length",
    "timesteps_total": "env steps",
    "training_iteration": "training iteration",
    "time_total_s": "training time [s]",
    "env_steps_per_s": "env steps per second",
}

# Okabe and Ito's colours, which people with colour blindness tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")


# Lines of more runs than this hide one another: only their mean and a band without the extremes are drawn.
MANY_RUNS = 20


class Band(NamedTuple):
    """Runs on one x axis, all `[N]`: where every run has values."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


class CurveFigure(Figure):
    """A figure that a notebook shows when it is a cell's value, without pyplot keeping it alive."""

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png")
        return png.getvalue()


def new_figure(width: float = 7.0, height: float = 4.0) -> tuple[CurveFigure, Axes]:
    """A figure with one pair of axes, sizes in inches."""
    figure = CurveFigure(figsize=(width, height), dpi=110, layout="constrained")
    axes = figure.subplots()
    return figure, axes


def draw_panels(
    panels: Mapping[str, Mapping[str, History]],
    *,
    key: str = "episode_reward_mean",
    x: str = "timesteps_total",
    smooth: int = 1,
    title: str | None = None,
) -> CurveFigure:
    """Draws groups in a panel for each environment: rewards of different tasks share no scale.

    Args:
        panels: groups as of `draw`, by environment.
        key, x, smooth: as of `draw`.
        title: above all; None: what is drawn.

    Returns:
        The figure.
    """
    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    figure = CurveFigure(figsize=(8.0 if columns == 1 else 12.0, 4.8 * rows), dpi=110, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (env, groups) in zip(grid, panels.items(), strict=False):
        draw(axes, groups, key=key, x=x, smooth=smooth, legend=True)
        if env:
            axes.set_title(printable_name(env, 60), loc="left", fontsize="medium", parse_math=False)
    for axes in grid[len(panels) :]:
        axes.remove()
    above = title or f"{LABELS.get(key, key)} over {LABELS.get(x, x)}"
    figure.suptitle(printable_name(above), parse_math=False)
    return figure


def draw(
    axes: Axes,
    groups: Mapping[str, History],
    *,
    key: str = "episode_reward_mean",
    x: str = "timesteps_total",
    smooth: int = 1,
    legend: bool = False,
) -> None:
    """Draws one line a group; a group of several runs gets the mean, the range from lowest to highest, and thin lines.

    Of more than 20 runs the band goes from the 10th to the 90th percentile, and there are no thin lines.

    Args:
        axes: where.
        groups: histories by label; runs joined to one (`History.join`) make its band.
        key: what to draw, nested keys joined by `/`.
        x: over what.
        smooth: mean over the last so many results; the raw line stays behind it, faint.
        legend: name a single line too.

    Raises:
        JaxrlError: a group has no such number.
    """
    if smooth < 1:
        raise JaxrlError(f"smooth should be at least 1 (a number of results), got {smooth}")
    for i, (name, history) in enumerate(groups.items()):
        # matplotlib leaves out of a legend what begins with an underscore.
        label = printable_name(f" {name}" if name.startswith("_") else name)
        color = COLORS[i % len(COLORS)]
        curves = [_points(run, key, x) for run in history.runs]
        if all(len(xs) == 0 for xs, _ in curves):
            raise _no_values(history, label, key, x)
        curves = [(xs, ys) for xs, ys in curves if len(xs)]
        smoothed = [(xs, moving_mean(ys, smooth)) for xs, ys in curves]
        if len(curves) == 1:
            (xs, ys), (_, raw) = smoothed[0], curves[0]
            if smooth > 1:
                axes.plot(xs, raw, color=color, alpha=0.25, linewidth=0.8)
            marker = "o" if len(xs) == 1 else ""
            axes.plot(xs, ys, color=color, linewidth=1.8, marker=marker, label=label or None)
            continue
        many = len(curves) > MANY_RUNS
        for xs, ys in smoothed if not many else ():
            axes.plot(xs, ys, color=color, alpha=0.3, linewidth=0.7)
        band = align(smoothed, (10.0, 90.0) if many else (0.0, 100.0))
        text = f"{label}, {len(curves)} runs{' (10% to 90%)' * many}".lstrip(", ")
        axes.plot(band.x, band.mean, color=color, linewidth=1.8, label=text)
        axes.fill_between(band.x, band.low, band.high, color=color, alpha=0.18, linewidth=0)
    _dress(axes, key, x, legend=legend or len(groups) > 1 or any(len(history.runs) > 1 for history in groups.values()))


def align(curves: Sequence[tuple[np.ndarray, np.ndarray]], percentiles: tuple[float, float] = (0.0, 100.0)) -> Band:
    """Interpolates runs onto the x values that lie where all of them have values.

    Args:
        curves: x and y of each run.
        percentiles: over runs, of the band.
    """
    low, high = max(xs[0] for xs, _ in curves), min(xs[-1] for xs, _ in curves)
    grid = np.unique(np.concatenate([xs for xs, _ in curves]))
    grid = grid[(grid >= low) & (grid <= high)]
    if len(grid) == 0:
        empty = np.zeros(0)
        return Band(empty, empty, empty, empty)
    values = np.stack([np.interp(grid, xs, ys) for xs, ys in curves])
    low_values, high_values = np.percentile(values, percentiles, axis=0)
    return Band(grid, values.mean(0), low_values, high_values)


def moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over the last `window` values, over as many as there are at the start.

    Example:
        >>> moving_mean(np.array([1.0, 3.0, 5.0]), 2).tolist()
        [1.0, 2.0, 4.0]
    """
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _points(run: History, key: str, x: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(a, b) for a, b in zip(run.column(x), run.column(key), strict=True) if math.isfinite(a + b)]
    # Wall-clock values can repeat; interpolation wants them in order.
    pairs.sort(key=lambda pair: pair[0])
    columns = np.asarray(pairs, dtype=float).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


def _no_values(history: History, label: str, key: str, x: str) -> JaxrlError:
    known = history.metrics()
    wrong = next((name for name in (key, x) if name not in known), None)
    name = label or "the run"
    if wrong is None:
        return JaxrlError(f"{name}: {key!r} has no finite value yet (no episode has ended, say)")
    return JaxrlError(f"{name}: no result has a number {wrong!r}; {nearest_keys(wrong, known)}")


def _dress(axes: Any, key: str, x: str, *, legend: bool) -> None:
    axes.set_xlabel(printable_name(LABELS.get(x, x)), parse_math=False)
    axes.set_ylabel(printable_name(LABELS.get(key, key)), parse_math=False)
    axes.grid(visible=True, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if x == "timesteps_total":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if legend:
        for text in axes.legend(frameon=False, fontsize="small").get_texts():
            text.set_parse_math(False)
