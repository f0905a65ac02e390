"""A disk that is full, and files that are moved, made read-only or torn: told of, and no line is lost or doubled."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import logging
import os
import pathlib
import resource
import shutil

import pytest

from jaxrl.algorithms.pg import PGTrainer
from jaxrl.trainers import appending, interruption
from jaxrl.trainers.appending import AppendedFile, when_there_is_room
from jaxrl.trainers.history import History
from jaxrl.trainers.result_table import RESULTS, keep_results
from jaxrl.trainers.results import ResultWriter
from jaxrl.types import CheckpointError, StorageError

TINY = {
    "env": "CartPole-v1",
    "train_batch_size": 32,
    "rollout_fragment_length": 32,
    "batch_mode": "truncate_episodes",
    "model": {"fcnet_hiddens": [4]},
    "seed": 1,
}


@contextlib.contextmanager
def files_of_at_most(size: int):
    """As on a full disk: a write beyond it is cut short, the next one fails (Python ignores the signal)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def result(iteration: int, **more: object) -> dict:
    return {"training_iteration": iteration, "timesteps_total": 10 * iteration, "reward": iteration / 3, **more}


def iterations(directory: pathlib.Path) -> list[int]:
    """The iterations in result.json, and those in progress.csv are the same."""
    found = [json.loads(line)["training_iteration"] for line in (directory / RESULTS).read_text().splitlines()]
    with open(directory / "progress.csv", newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    assert [int(row["training_iteration"]) for row in rows] == found
    assert all(None not in row and None not in row.values() for row in rows)
    return found


@pytest.fixture
def writer(tmp_path):
    return ResultWriter(tmp_path, "PG", {"env": "CartPole-v1"})


def test_a_write_that_is_cut_short_leaves_nothing_behind(tmp_path):
    file = AppendedFile(tmp_path / "file")
    file.append(b"first\n")
    with files_of_at_most(9), pytest.raises(StorageError, match=r"/file: File too large; raise the limit"):
        file.append(b"second\n")
    assert (tmp_path / "file").read_bytes() == b"first\n"
    file.append(b"third\n")
    assert (tmp_path / "file").read_bytes() == b"first\nthird\n"


def test_what_is_torn_and_cannot_be_taken_back_is_taken_back_later(tmp_path, monkeypatch):
    file = AppendedFile(tmp_path / "file")
    file.append(b"first\n")
    with monkeypatch.context() as patch, files_of_at_most(9):
        patch.setattr(os, "ftruncate", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
        with pytest.raises(StorageError):
            file.append(b"second\n")
    assert (tmp_path / "file").read_bytes() == b"first\nsec" and file.torn
    file.append(b"third\n")
    assert (tmp_path / "file").read_bytes() == b"first\nthird\n"


@pytest.mark.parametrize("limit", range(0, 260, 20))
def test_lines_that_found_no_room_are_written_with_the_next(writer, tmp_path, limit):
    writer.write(result(1))
    for number in (2, 3):
        with files_of_at_most(limit):
            with contextlib.suppress(StorageError):
                writer.write(result(number, **{"later": 1.0} if number == 3 else {}))
            assert iterations_of_lines(tmp_path)[0] == 1
    writer.write(result(4))
    writer.close()
    assert iterations(tmp_path) == [1, 2, 3, 4]
    assert History.load(tmp_path).column("later")[2] == 1.0


def iterations_of_lines(directory: pathlib.Path) -> list[int]:
    return [json.loads(line)["training_iteration"] for line in (directory / RESULTS).read_text().splitlines()]


def test_an_error_comes_at_the_first_line_that_finds_no_room(writer, tmp_path):
    writer.write(result(1))
    with files_of_at_most(100), pytest.raises(StorageError, match=r"result\.json: File too large"):
        writer.write(result(2))
    assert iterations(tmp_path) == [1]
    writer.close()  # there is room again
    assert iterations(tmp_path) == [1, 2]


def test_a_directory_without_room_for_the_first_result_has_it_later(writer, tmp_path):
    with files_of_at_most(0), pytest.raises(StorageError, match=r"params\.json"):
        writer.write(result(1))
    writer.write(result(2))
    assert iterations(tmp_path) == [1, 2]
    assert not list(tmp_path.glob(".*"))


def test_a_trainer_trains_on_when_there_is_room_again(tmp_path):
    with PGTrainer(TINY, results_dir=tmp_path) as trainer:
        trainer.train()
        path = pathlib.Path(trainer.save())
        with files_of_at_most(100):
            for _ in range(2):
                with pytest.raises(StorageError, match=r"result\.json"):
                    trainer.train()
            with pytest.raises((StorageError, CheckpointError), match="File too large"):
                trainer.save()
        assert [found.name for found in tmp_path.glob("*checkpoint*")] == [path.name]
        trainer.train()
    assert iterations(tmp_path) == [1, 2, 3, 4]
    with PGTrainer.from_checkpoint(path, results_dir=tmp_path) as trainer:
        trainer.train()
    assert iterations(tmp_path) == [1, 2]


@pytest.mark.parametrize("kind", ["removed", "moved", "emptied"])
def test_a_directory_that_goes_away_is_an_error(writer, tmp_path, kind):
    place = tmp_path / "run"
    writer.directory = place
    writer.write(result(1))
    if kind == "removed":
        shutil.rmtree(place)
    elif kind == "moved":
        place.rename(tmp_path / "elsewhere")
    else:
        os.truncate(place / RESULTS, 5)
    for number in (2, 3):
        with pytest.raises(StorageError, match="moved"):
            writer.write(result(number))
    if kind == "moved":
        (tmp_path / "elsewhere").rename(place)
        writer.write(result(4))
        assert iterations(place) == [1, 2, 3, 4]


def test_curves_have_a_gap_where_they_find_no_room_and_the_run_goes_on(writer, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("jaxrl.trainers.results.EVENT_INTERVAL_S", 0.0)
    writer.write(result(1))
    (file,) = tmp_path.glob("events.*")
    size = file.stat().st_size
    write = os.write

    def no_room_for_events(descriptor, data):
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(file)):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", no_room_for_events)
        for number in (2, 3):
            writer.write(result(number))
    assert file.stat().st_size == size
    assert len(caplog.records) == 1 and "curves have a gap" in caplog.text
    writer.write(result(4))
    assert file.stat().st_size > size
    assert iterations(tmp_path) == [1, 2, 3, 4]


def test_a_run_may_wait_for_room(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    tries = []

    def write():
        tries.append(None)
        if len(tries) < 4:
            with appending.storing(tmp_path):
                raise OSError(errno.ENOSPC, "No space left on device")
        return "done"

    monkeypatch.setattr(appending, "PAUSE_S", 0.0)
    with pytest.raises(StorageError, match="No space left on device; make room there"):
        when_there_is_room(write, wait=False)
    assert when_there_is_room(write, wait=True) == "done" and len(tries) == 4
    assert [record.message for record in caplog.records] == [
        f"Waiting for room on the disk (on_full_disk='wait'): {tmp_path}: No space left on device; make room there"
    ]
    tries.clear()
    monkeypatch.setattr(interruption, "requested", lambda: 15)
    with pytest.raises(StorageError):  # who asks the run to end does not wait for room
        when_there_is_room(write, wait=True)


def test_the_trainers_option_waits(tmp_path, monkeypatch):
    with PGTrainer({**TINY, "on_full_disk": "wait"}, results_dir=tmp_path) as trainer:
        trainer.train()
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        waited = []

        def room(seconds):
            waited.append(seconds)
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

        monkeypatch.setattr(appending, "_FULL", (errno.EFBIG,))
        monkeypatch.setattr(appending.time, "sleep", room)
        for act in (trainer.train, trainer.save):
            with files_of_at_most(100):
                act()
        assert len(waited) == 2
    assert iterations(tmp_path) == [1, 2]


TORN = {
    "cut": lambda lines: [*lines[:-1], lines[-1][:20]],
    "glued": lambda lines: [lines[0], lines[1][:-15] + lines[2], *lines[3:]],
    "zeros": lambda lines: [*lines[:-1], b"\0" * 50],
    "no result": lambda lines: [lines[0], b"[3]\n", *lines[1:]],
    "too deep": lambda lines: [b"[" * 100_000 + b"\n", *lines],
    "no text": lambda lines: [lines[0], b"\xff\xfe\n", *lines[1:]],
}


@pytest.mark.parametrize("kind", TORN)
@pytest.mark.parametrize("name", [RESULTS, "progress.csv"])
def test_torn_lines_are_repaired_when_a_run_goes_on(writer, tmp_path, kind, name, caplog):
    for number in range(1, 5):
        writer.write(result(number, text='a\nb,"c'))
    writer.close()
    path = tmp_path / name
    path.write_bytes(b"".join(TORN[kind](path.read_bytes().splitlines(keepends=True))))
    second = ResultWriter(tmp_path, "PG", {"env": "CartPole-v1"})
    second.write(result(5, new=2.0))
    second.close()
    lost = {"cut": [4], "glued": [2, 3], "zeros": [4]}.get(kind, []) if name == RESULTS else []
    assert iterations(tmp_path) == [number for number in range(1, 6) if number not in lost]
    assert len(History.load(tmp_path)) == 5 - len(lost)
    told = name == RESULTS and kind not in ("cut", "zeros")
    assert ("dropped lines that hold no whole result" in caplog.text) is told


def test_what_a_killed_process_left_half_written_is_gone_when_a_run_goes_on(writer, tmp_path):
    writer.write(result(1))
    writer.close()
    for name in (RESULTS, "progress.csv", "params.json"):
        (tmp_path / f".{name}.new").write_text("{")
    second = ResultWriter(tmp_path, "PG", {"env": "CartPole-v1"})
    for number in (2, 1):
        second.write(result(number))
    second.close()
    assert not list(tmp_path.glob(".*"))
    assert iterations(tmp_path) == [1]


def test_a_table_equals_the_one_that_is_made_again(writer, tmp_path):
    writer.write(result(1, best=None, flag=True, big=2**70, small=1e-300, nan=float("nan")))
    writer.write(result(2, info={"kl": 0.1, 'odd name, "quoted"': 3}, hist=[1.0, 2.0]))
    table = (tmp_path / "progress.csv").read_bytes()
    keep_results(tmp_path, 2)
    assert (tmp_path / "progress.csv").read_bytes() == table


def test_what_is_made_again_starts_a_new_session_in_tensorboard(writer, tmp_path):
    for number in range(1, 4):
        writer.write(result(number))
    writer.close()
    second = ResultWriter(tmp_path, "PG", {"env": "CartPole-v1"})
    second.write(result(2))
    second.close()
    first, last = sorted(tmp_path.glob("events.*"))
    assert b"brain.Event:2" in first.read_bytes() and starts(first) == []
    assert starts(last) == [11]  # iteration 1 ended at step 10


def starts(file: pathlib.Path) -> list[int]:
    """The steps of an event file from which TensorBoard drops what earlier files say."""
    import importlib
    import struct

    messages = importlib.import_module("tensorboardX.proto.event_pb2")
    data, at, found = file.read_bytes(), 0, []
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = messages.Event.FromString(data[at + 12 : at + 12 + length])
        at += 16 + length
        if event.HasField("session_log") and event.session_log.status == messages.SessionLog.START:
            found.append(event.step)
    return found
