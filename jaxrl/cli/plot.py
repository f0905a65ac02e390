"""`jaxrl plot`: learning curves of runs, to an image."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

from jaxrl.cli.reporting import quieten, reported, say, show


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
    title: Annotated[str | None, typer.Option("--title", help="Title of the image. [default: what is drawn]")] = None,
) -> None:
    """Draw the learning curves of all runs in some directories.

    Runs that differ in nothing but their seed make one curve: their mean, and a band from the lowest to the highest.
    Each environment has a panel of its own.
    """
    quieten(0)
    with reported():
        from jaxrl.trainers.curves import draw_panels
        from jaxrl.trainers.run_groups import find_groups
        from jaxrl.types import ConfigError

        panels, skipped = find_groups(directories)
        for note in skipped:
            say(f"Skipped {note}")
        figure = draw_panels(panels, key=y, x=x, smooth=smooth, title=title)
        target = (directories[0] / "learning_curve.png" if out is None else out).expanduser()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(target)
        except (OSError, ValueError) as error:
            raise ConfigError(f"--out: {target} cannot be written: {error}") from error
        for label, history in (item for groups in panels.values() for item in groups.items()):
            count = len(history.runs)
            last = [value for run in history.runs for value in run.column(y)[-1:]]
            mean = sum(last) / len(last)
            show(f"{label}: {count} run{'s' * (count != 1)}, {y} {mean:.4g} at last")
        show(f"Image: {target}")
