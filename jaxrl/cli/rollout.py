"""`jaxrl rollout`: plays episodes with the policies of a checkpoint."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import IO, Annotated, Any

import typer

from jaxrl.cli.options import Imports, TrustImports, Verbosity, import_modules, read_mapping
from jaxrl.cli.reporting import quieten, reported, say, show


def rollout(
    checkpoint: Annotated[
        pathlib.Path, typer.Argument(help="A checkpoint, or a directory of runs: the best run's newest.")
    ],
    episodes: Annotated[
        int | None, typer.Option(help="Episodes to play. [default: 1, or as many as --steps]", min=1)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Env steps to play in all; the last episode is cut.", min=1)] = None,
    render: Annotated[
        bool | None, typer.Option("--render/--no-render", help="Show a window. [default: if there is a display]")
    ] = None,
    video_dir: Annotated[
        pathlib.Path | None, typer.Option("--video-dir", help="Write an MP4 file of each episode here.")
    ] = None,
    out: Annotated[
        pathlib.Path | None, typer.Option("--out", help="Write episodes to this file, one line of JSON each.")
    ] = None,
    env: Annotated[
        str | None, typer.Option("--env", help="Another environment with the same spaces. [default: the checkpoint's]")
    ] = None,
    config: Annotated[
        list[str] | None, typer.Option("--config", help="Options that differ, as JSON or key=value; may be repeated.")
    ] = None,
    explore: Annotated[
        bool | None, typer.Option("--explore/--no-explore", help="Sample actions, or take the likeliest.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Makes the episodes repeatable.")] = None,
    imports: Imports = None,
    trust_imports: TrustImports = False,
    verbosity: Verbosity = 0,
) -> None:
    """Play episodes with a checkpoint's policies; its algorithm and environment come from the checkpoint."""
    quieten(verbosity)
    with reported(verbosity):
        from jaxrl.types import ConfigError

        import_modules(imports or [])
        if render and video_dir is not None:
            raise ConfigError("--render shows a window and --video-dir writes files; choose one")
        overrides = read_mapping(config or [], "--config")
        if env is not None:
            overrides["env"] = env
        if seed is not None:
            overrides["seed"] = seed
        trainer = _load(checkpoint, overrides, trust_imports, verbosity)
        try:
            _play(trainer, episodes, steps, render, video_dir, out, explore, seed)
        finally:
            trainer.stop()


def _load(path: pathlib.Path, overrides: Mapping[str, Any], trust_imports: bool, verbosity: int) -> Any:
    from jaxrl.cli.experiments import find_trainer
    from jaxrl.cli.runs import find_checkpoint
    from jaxrl.trainers.checkpoint import read_metadata

    found = find_checkpoint(path)
    metadata = read_metadata(found)
    if found != path.expanduser():
        say(f"Using {found}: the newest checkpoint of the run with the highest last mean reward there")
    cls = find_trainer(str(metadata["algorithm"]))
    quieten(verbosity)
    alone = {"num_workers": 0, "evaluation_num_workers": 0, "evaluation_interval": None, "engine": "workers"}
    return cls.from_checkpoint(found, {**alone, **overrides}, trust_imports=trust_imports)


def _play(
    trainer: Any,
    episodes: int | None,
    steps: int | None,
    render: bool | None,
    video_dir: pathlib.Path | None,
    out: pathlib.Path | None,
    explore: bool | None,
    seed: int | None,
) -> None:
    import contextlib

    from jaxrl.trainers.appending import storing
    from jaxrl.trainers.video import VideoWriter

    rewards: list[float] = []
    left = steps
    with storing(out or video_dir or "output"), contextlib.ExitStack() as stack:
        player = stack.enter_context(
            contextlib.closing(
                _player(trainer, render, video_dir, explore=explore, seed=seed, keep_steps=out is not None)
            )
        )
        file = None if out is None else stack.enter_context(_open(out))
        count = episodes if episodes is not None else (None if steps is not None else 1)
        number = 0
        while (count is None or number < count) and (left is None or left > 0):
            number += 1
            if video_dir is None:
                episode = player.play(max_steps=left)
            else:
                writer = VideoWriter(video_dir / f"episode_{number:04d}.mp4", player.frames_per_second)
                with contextlib.closing(writer):
                    episode = player.play(max_steps=left, on_step=writer.add)
            if left is not None:
                left -= episode.length
            if file is not None:
                file.write(json.dumps(to_record(number, episode), allow_nan=False) + "\n")
            if episode.complete or not rewards:
                rewards.append(episode.reward)
            show(describe(number, episode))
    show(f"Mean reward of {len(rewards)} episode{'s' * (len(rewards) != 1)}: {sum(rewards) / len(rewards):.2f}")
    for label, path in (("Episodes", out), ("Videos", video_dir)):
        if path is not None:
            show(f"{label}: {path}")


def _player(trainer: Any, render: bool | None, video_dir: pathlib.Path | None, **options: Any) -> Any:
    from jaxrl.trainers.episodes import Player, has_display
    from jaxrl.types import ConfigError

    if video_dir is not None:
        return Player(trainer, render_mode="rgb_array", **options)
    if render or (render is None and has_display()):
        try:
            return Player(trainer, render_mode="human", **options)
        except ConfigError:
            if render:
                raise
            say("This environment shows no window; playing without.")
    return Player(trainer, **options)


def describe(number: int, episode: Any) -> str:
    """An episode in one line."""
    agents = "".join(f"  {agent}: {reward:.2f}" for agent, reward in episode.agent_rewards.items())
    cut = "" if episode.complete else "  (cut)"
    return f"Episode {number}: reward {episode.reward:.2f}, {episode.length} steps{agents}{cut}"


def to_record(number: int, episode: Any) -> dict[str, Any]:
    """An episode as JSON data."""
    from jaxrl.trainers.results import to_plain

    return to_plain(
        {
            "episode": number,
            "reward": episode.reward,
            "length": episode.length,
            "complete": episode.complete,
            "agent_rewards": dict(episode.agent_rewards),
            "steps": [step._asdict() for step in episode.steps],
            "final_obs": episode.final_obs,
        }
    )


def _open(path: pathlib.Path) -> IO[str]:
    from jaxrl.types import ConfigError

    try:
        return open(path.expanduser(), "w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out: {path} cannot be written: {error}") from error
