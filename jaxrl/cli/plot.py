"""`jaxrl plot`: learning curves of runs, to an image."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

from jaxrl.cli.reporting import quieten, reported, say


def plot(
    directories: Annotated[
        list[pathlib.Path], typer.Argument(help="Results or experiment directories.", metavar="DIR...")
    ],
    y: Annotated[
        str, typer.Option("--y", help="What to draw; parts of nested keys are joined by /.")
    ] = "episode_reward_mean",
    x: Annotated[str, typer.Option("--x", help="Over what.")] = "timesteps_total",
    out: Annotated[
        pathlib.Path | None,
        typer.Option("--out", help="Image file, its format by the suffix. [default: learning_curve.png in DIR]"),
    ] = None,
    smooth: Annotated[int, typer.Option("--smooth", help="Mean over the last so many results.", min=1)] = 1,
    title: Annotated[str | None, typer.Option("--title", help="Title of the image.")] = None,
) -> None:
    """Draw the learning curves of all runs in some directories.

    Runs that differ in nothing but their seed make one curve: their mean, and a band from the lowest to the highest.
    """
    quieten(0)
    with reported():
        from jaxrl.trainers.curves import draw, new_figure
        from jaxrl.trainers.run_groups import find_groups
        from jaxrl.types import ConfigError

        groups, skipped = find_groups(directories)
        for note in skipped:
            say(f"Skipped {note}")
        figure, axes = new_figure(8.0, 4.8)
        draw(axes, groups, key=y, x=x, smooth=smooth)
        if title is not None:
            axes.set_title(title, loc="left")
        target = (directories[0] / "learning_curve.png" if out is None else out).expanduser()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(target)
        except (OSError, ValueError) as error:
            raise ConfigError(f"--out: {target} cannot be written: {error}") from error
        for label, history in groups.items():
            count = len(history.runs)
            last = [value for run in history.runs for value in run.column(y)[-1:]]
            mean = sum(last) / len(last)
            print(f"{label}: {count} run{'s' * (count != 1)}, {y} {mean:.4g} at last")
        print(f"Image: {target}")
