"""History: the results of a run, as a list, a curve, a table or a DataFrame."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import os
import pathlib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast, overload

from jaxrl.trainers.result_table import flatten
from jaxrl.trainers.results import is_finite
from jaxrl.types import JaxrlError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

_TABLE_KEYS = (
    ("training_iteration", "iteration"),
    ("timesteps_total", "env steps"),
    ("episode_reward_mean", "reward mean"),
    ("episode_reward_min", "min"),
    ("episode_reward_max", "max"),
    ("episode_len_mean", "length"),
    ("evaluation/episode_reward_mean", "evaluation mean"),
    ("env_steps_per_s", "steps/s"),
    ("time_total_s", "seconds"),
)


def image_tag(figure: Figure, text: str) -> str:
    """A figure as an HTML image that stands for itself, with `text` in its place where images are not shown."""
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return f"<img src='data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}' alt='{html.escape(text)}'>"


class History(Sequence[Mapping[str, Any]]):
    """The results of a run, oldest first, as `fit` returns them and `History.load` reads them.

    Args:
        results: result dicts.
        name: what curves call the run.
        note: how the run ended, if there is something to say.
        more: other runs of the same experiment, which make the curve a band: see `join`.
        progress: numbers to show beside the rewards, by title: see `build_trainer`.

    Example:
        >>> history = trainer.fit(20)                            # doctest: +SKIP
        >>> history[-1]["episode_reward_mean"], history.plot()   # doctest: +SKIP
    """

    def __init__(
        self,
        results: Iterable[Mapping[str, Any]] = (),
        *,
        name: str = "",
        note: str = "",
        more: Iterable[History] = (),
        progress: Mapping[str, str] | None = None,
    ) -> None:
        self.results: list[Mapping[str, Any]] = list(results)
        self.name = name
        self.note = note
        self.progress = dict(progress or {})
        self._more = tuple(more)
        self._shown_in: int | None = None

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Mapping[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> Mapping[str, Any] | Sequence[Mapping[str, Any]]:
        return self.results[index]

    def __len__(self) -> int:
        return len(self.results)

    @property
    def runs(self) -> tuple[History, ...]:
        """This run and those joined to it."""
        return (self, *(run for other in self._more for run in other.runs))

    def join(self, *others: History, name: str | None = None) -> History:
        """This run with others of the same experiment (seeds, say): the list stays this run's, the curve is a band."""
        return History(
            self.results, name=self.name if name is None else name, note=self.note, more=(*self._more, *others)
        )

    def metrics(self) -> list[str]:
        """The keys of numbers, nested ones joined by `/`: what `column` and `plot` take."""
        return list(dict.fromkeys(key for result in self for key, value in flatten(result) if _is_number(value)))

    def column(self, key: str) -> list[float]:
        """One number of each result; NaN where it is absent.

        Args:
            key: such as `episode_reward_mean` or `info/learner/default_policy/policy_loss`.
        """
        return [value_at(result, key) for result in self]

    def to_pandas(self) -> DataFrame:
        """A DataFrame with one row a result and nested keys joined by `/`; the config is left out.

        Raises:
            JaxrlError: pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise JaxrlError("to_pandas needs pandas: pip install 'jaxrl[notebook]'") from error
        rows = [{key: value for key, value in flatten(result) if not key.startswith("config/")} for result in self]
        return pandas.DataFrame(rows)

    def plot(
        self,
        key: str = "episode_reward_mean",
        x: str = "timesteps_total",
        ax: Axes | None = None,
        smooth: int = 1,
    ) -> Figure:
        """Draws a learning curve: a line, or the mean and range of the runs joined.

        Args:
            key: what to draw, nested keys joined by `/`.
            x: over what.
            ax: axes to draw into; None: a new figure, which a notebook shows and which nobody needs to close.
            smooth: mean over so many results.

        Returns:
            The figure.

        Raises:
            JaxrlError: no result has such a number; the message gives those there are.
        """
        from jaxrl.trainers.curves import draw, new_figure

        axes = new_figure()[1] if ax is None else ax
        draw(axes, {self.name: self}, key=key, x=x, smooth=smooth)
        return cast("Figure", axes.get_figure(root=True))

    def save_plot(self, path: str | os.PathLike[str], **options: Any) -> pathlib.Path:
        """Writes the curve as an image, its format by the suffix; options as of `plot`."""
        target = pathlib.Path(path).expanduser()
        target.parent.mkdir(parents=True, exist_ok=True)
        self.plot(**options).savefig(target)
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> History:
        """Reads a run's results.

        Where a run was restored from an earlier checkpoint and repeated iterations, the repeated ones count.

        Args:
            path: a results directory, or its `result.json`.

        Raises:
            JaxrlError: there is no result.json, or it holds no result.
        """
        given = pathlib.Path(path).expanduser()
        file = given / "result.json" if given.is_dir() else given
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise JaxrlError(f"{file}: cannot be read: {error}; expected a run's results directory") from error
        results: list[dict[str, Any]] = []
        for number, line in enumerate(lines, 1):
            result = _parse(line)
            if result is None and number == len(lines):
                break  # the last line may be cut off where the machine went down
            if result is None:
                raise JaxrlError(f"{file}:{number}: is no JSON object; expected one result a line")
            iteration = result.get("training_iteration")
            while isinstance(iteration, int) and results and results[-1].get("training_iteration", 0) >= iteration:
                results.pop()
            results.append(result)
        if not results:
            raise JaxrlError(f"{file}: holds no result yet")
        return cls(results, name=file.parent.name)

    def __repr__(self) -> str:
        label = f"History of {self.name or 'a run'}: {len(self)} results"
        if len(self.runs) > 1:
            label += f", joined with {len(self.runs) - 1} more runs"
        rows = [f"  {title}: {text}" for title, text in self._summary()]
        return "\n".join([label, *rows, *([f"  {self.note}"] if self.note else [])])

    def mark_shown(self) -> None:
        """Says that this notebook cell shows the history already, so that it is not shown twice as the cell's value."""
        self._shown_in = _cell_number()

    def _repr_html_(self) -> str:
        if self._shown_in is not None and self._shown_in == _cell_number():
            return ""
        image = ""
        if any(math.isfinite(value) for value in self.column("episode_reward_mean")):
            image = image_tag(self.plot(), "learning curve")
        cells = self._summary()
        head = "".join(f"<th>{html.escape(title)}</th>" for title, _ in cells)
        body = "".join(f"<td>{html.escape(text)}</td>" for _, text in cells)
        note = f"<p>{html.escape(self.note)}</p>" if self.note else ""
        return (
            f"<div><b>{html.escape(self.name or 'run')}</b><br>{image}"
            f"<table><thead><tr>{head}</tr></thead><tbody><tr>{body}</tr></tbody></table>{note}</div>"
        )

    def _summary(self) -> list[tuple[str, str]]:
        if not self.results:
            return []
        keys = [*_TABLE_KEYS, *((key, title) for title, key in self.progress.items())]
        found = [(title, value_at(self[-1], key)) for key, title in keys]
        return [(title, number(value)) for title, value in found if math.isfinite(value)]


def number(value: float) -> str:
    """A number with about four digits.

    Example:
        >>> number(12000.0), number(3.25), number(0.012345)
        ('12,000', '3.2', '0.01234')
    """
    if abs(value) >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 1 else f"{value:.4g}"


def _cell_number() -> int | None:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return None if shell is None else shell.execution_count


def value_at(result: Mapping[str, Any], key: str) -> float:
    """The number of a result under a key whose parts are joined by `/`; NaN where there is none.

    A part `*` stands for the first key there is.
    """
    if "/*/" in key:
        before, _, after = key.partition("/*/")
        pattern = re.compile(f"{re.escape(before)}/[^/]+/{re.escape(after)}")
        return next((value_at(result, name) for name in dict(flatten(result)) if pattern.fullmatch(name)), math.nan)
    # A metric's own name may hold slashes (`critic/loss`), so that the flat keys decide.
    node = result[key] if key in result else dict(flatten(result)).get(key)
    return float(cast("float", node)) if is_finite(node) else math.nan


def _is_number(value: Any) -> bool:
    return is_finite(value) or (isinstance(value, float) and math.isnan(value))


def _parse(line: str) -> dict[str, Any] | None:
    try:
        result = json.loads(line)
    except ValueError:
        return None
    return result if isinstance(result, dict) else None
