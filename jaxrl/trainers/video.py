"""Videos of episodes, as MP4 files and inside a notebook."""

from __future__ import annotations

import base64
import contextlib
import os
import pathlib
import tempfile
from typing import Any

import numpy as np

from jaxrl.trainers.episodes import PlayedEpisode, Player
from jaxrl.types import ConfigError, EnvError


class VideoWriter:
    """Writes rendered frames to an MP4 file.

    Args:
        path: of the file; its directory is made.
        frames_per_second: how fast it is shown.

    Raises:
        ConfigError: imageio-ffmpeg is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], frames_per_second: int = 30) -> None:
        self._ffmpeg = _ffmpeg()
        self.path = pathlib.Path(path).expanduser()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fps = frames_per_second
        self._sink: Any = None
        self._shape: tuple[int, ...] = ()

    def add(self, env: Any) -> None:
        """Renders an environment and adds the frame; its signature is that of `Player.play`'s `on_step`."""
        frame = np.asarray(env.render())
        if frame.ndim != 3 or frame.shape[-1] != 3:
            raise EnvError(f"env.render(): expected an RGB image [height, width, 3], got shape {frame.shape}")
        # H.264 wants even sides; a missing row or column is invisible.
        frame = np.ascontiguousarray(frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2], dtype=np.uint8)
        if self._sink is None:
            self._shape = frame.shape
            size = (frame.shape[1], frame.shape[0])
            self._sink = self._ffmpeg.write_frames(
                str(self.path), size, fps=self._fps, macro_block_size=2, ffmpeg_log_level="error"
            )
            self._sink.send(None)
        if frame.shape != self._shape:
            raise EnvError(f"env.render(): expected frames of shape {self._shape} as the first, got {frame.shape}")
        self._sink.send(frame)

    def close(self) -> None:
        """Ends the file."""
        if self._sink is not None:
            self._sink.close()
            self._sink = None


class Video:
    """An MP4 file that a notebook shows in the page.

    Args:
        path: of the file.
        episode: the episode that it shows, or None.
    """

    def __init__(self, path: str | os.PathLike[str], episode: PlayedEpisode | None = None) -> None:
        self.path = pathlib.Path(path)
        self.episode = episode

    def __repr__(self) -> str:
        return f"Video({str(self.path)!r})"

    def _repr_html_(self) -> str:
        data = base64.b64encode(self.path.read_bytes()).decode()
        text = "" if self.episode is None else f"<br>reward {self.episode.reward:g}, {self.episode.length} steps"
        return f"<video controls autoplay loop src='data:video/mp4;base64,{data}' style='max-width:100%'></video>{text}"


def record_video(
    trainer: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    max_steps: int | None = None,
    explore: bool | None = None,
    seed: int | None = None,
) -> Video:
    """Plays one episode with a trainer's policies and records it.

    Args:
        trainer: a Trainer.
        path: of the MP4 file; None: in a temporary directory.
        max_steps: cut the episode after so many env steps.
        explore: sample actions (True) or take the mode (False); None: as the options of evaluation say.
        seed: of the environment.

    Returns:
        A Video, which a notebook shows in the page.

    Raises:
        ConfigError: imageio-ffmpeg is not installed, or the environment does not render images.

    Example:
        >>> record_video(trainer, "episode.mp4", explore=False)   # doctest: +SKIP
    """
    _ffmpeg()
    target = pathlib.Path(tempfile.mkdtemp(prefix="jaxrl-video-")) / "episode.mp4" if path is None else path
    with contextlib.closing(Player(trainer, render_mode="rgb_array", explore=explore, seed=seed)) as player:
        writer = VideoWriter(target, player.frames_per_second)
        with contextlib.closing(writer):
            episode = player.play(max_steps=max_steps, on_step=writer.add)
    return Video(writer.path, episode)


def _ffmpeg() -> Any:
    try:
        import imageio_ffmpeg
    except ModuleNotFoundError as error:
        raise ConfigError("videos need imageio-ffmpeg: pip install 'jaxrl[notebook]'") from error
    return imageio_ffmpeg
