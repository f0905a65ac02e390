"""Videos of episodes, as MP4 files and inside a notebook."""

from __future__ import annotations

import base64
import contextlib
import os
import pathlib
import subprocess
import tempfile
from typing import Any

import numpy as np

from jaxrl.trainers.episodes import PlayedEpisode, Player
from jaxrl.types import ConfigError, EnvError, JaxrlError


class VideoWriter:
    """Writes rendered frames to an MP4 file.

    Args:
        path: of the file; its directory is made.
        frames_per_second: how fast it is shown.

    Raises:
        ConfigError: imageio-ffmpeg is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], frames_per_second: int = 30) -> None:
        self._exe = _ffmpeg()
        self.path = pathlib.Path(path).expanduser().absolute()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fps = frames_per_second
        self._process: subprocess.Popen[bytes] | None = None
        self._shape: tuple[int, ...] = ()

    def add(self, env: Any) -> None:
        """Renders an environment and adds the frame; its signature is that of `Player.play`'s `on_step`."""
        frame = np.asarray(env.render())
        if frame.ndim != 3 or frame.shape[-1] != 3:
            raise EnvError(f"env.render(): expected an RGB image [height, width, 3], got shape {frame.shape}")
        # H.264 wants even sides; a missing row or column is invisible.
        frame = np.ascontiguousarray(frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2], dtype=np.uint8)
        if self._process is None:
            self._shape = frame.shape
            self._process = self._start(frame.shape[1], frame.shape[0])
        if frame.shape != self._shape:
            raise EnvError(f"env.render(): expected frames of shape {self._shape} as the first, got {frame.shape}")
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(frame.data)
        except BrokenPipeError:
            self.close()

    def close(self) -> None:
        """Ends the file.

        Raises:
            JaxrlError: ffmpeg could not write it; with its message.
        """
        process, self._process = self._process, None
        if process is None:
            return
        _, errors = process.communicate()
        if process.returncode != 0:
            raise JaxrlError(f"{self.path}: ffmpeg could not write it: {errors.decode(errors='replace').strip()}")

    def _start(self, width: int, height: int) -> subprocess.Popen[bytes]:
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(self._fps), "-i", "-"]
        target = ["-an", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-movflags", "+faststart", str(self.path)]
        # Not imageio's own writer: it forks this process, which JAX's threads may not survive. In a process group of
        # its own, ffmpeg is not ended by Ctrl-C before its file is.
        return subprocess.Popen(
            [self._exe, "-y", "-v", "error", *source, *target],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            process_group=0,
        )


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
        here = pathlib.Path.cwd()
        shown = self.path.relative_to(here) if self.path.is_relative_to(here) else self.path
        return f"Video({str(shown)!r})"

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


def _ffmpeg() -> str:
    try:
        import imageio_ffmpeg
    except ModuleNotFoundError as error:
        raise ConfigError("videos need imageio-ffmpeg: pip install 'jaxrl[notebook]'") from error
    return imageio_ffmpeg.get_ffmpeg_exe()
