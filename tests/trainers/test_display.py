"""Where a run's table is drawn over: in terminals, not in pipes and pages."""

import sys

import pytest

from jaxrl.trainers import display as displays
from jaxrl.trainers.video import Video


@pytest.mark.parametrize(("terminal", "kernel"), [(True, False), (True, True), (False, False)])
def test_only_a_terminal_outside_a_kernel_redraws(monkeypatch, terminal, kernel):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    if kernel:
        monkeypatch.setenv("JPY_PARENT_PID", "1")
    assert displays.redraws() is (terminal and not kernel)


def test_a_video_below_the_working_directory_is_named_from_there(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert repr(Video(tmp_path / "videos" / "episode.mp4")) == "Video('videos/episode.mp4')"
    assert repr(Video(tmp_path.parent / "episode.mp4")) == f"Video({str(tmp_path.parent / 'episode.mp4')!r})"
