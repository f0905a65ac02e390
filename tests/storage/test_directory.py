"""Directories: whole or the old one, listed regular files only, strict JSON, left-overs of killed processes removed."""

import fcntl
import hashlib
import json
import os
import shutil
import stat
import tracemalloc

import numpy as np
import pytest

from jaxrl import storage
from jaxrl.storage.files import MAX_NESTING, encode_json, parse_json
from jaxrl.types import CheckpointError


def fill(writer):
    writer.json("a.json", {"x": [1, 2.5, None]})
    writer.arrays("below/deep/b.safetensors", {"b": np.arange(5)})
    return {"format_version": 7}


@pytest.fixture
def made(tmp_path):
    storage.write(tmp_path / "made", fill)
    return tmp_path / "made"


def reseal(path, change=lambda manifest: None):
    manifest = json.loads((path / "metadata.json").read_text())
    manifest.pop("checksum")
    manifest["sha256"] = {
        name: hashlib.sha256((path / name).read_bytes()).hexdigest()
        for name in manifest["sha256"]
        if (path / name).is_file()
    }
    change(manifest)
    (path / "metadata.json").write_text(json.dumps({**manifest, "checksum": storage.checksum(manifest)}))


def refused(path, match):
    with pytest.raises(CheckpointError, match=match):
        storage.opened(path).verify()


def test_round_trip(made):
    files = storage.opened(made)
    files.verify()
    assert files.about == {"format_version": 7}
    assert files.json("a.json") == {"x": [1, 2.5, None]}
    below = files.below("below")
    assert below.names == ["deep/b.safetensors"] and "deep/b.safetensors" in below and "a.json" not in below
    np.testing.assert_array_equal(below.arrays("deep/b.safetensors")["b"], np.arange(5))
    with pytest.raises(CheckpointError, match="c.json: is missing"):
        files.json("c.json")


def test_everyone_may_read_what_the_umask_allows(tmp_path):
    for umask, file_mode, directory_mode in ((0o022, 0o644, 0o755), (0o077, 0o600, 0o700)):
        before = os.umask(umask)
        try:
            path = tmp_path / f"{umask}"
            storage.write(path, fill)
        finally:
            os.umask(before)
        for entry in (path, *path.rglob("*")):
            expected = directory_mode if entry.is_dir() else file_mode
            assert stat.S_IMODE(entry.stat().st_mode) == expected


def test_what_is_no_listed_regular_file_is_refused(made, tmp_path):
    (made / "a.json").rename(tmp_path / "a.json")
    refused(made, "lacks a.json")
    (made / "a.json").symlink_to(tmp_path / "a.json")
    refused(made, "a.json is no regular file")
    (made / "a.json").unlink()
    os.mkfifo(made / "a.json")
    refused(made, "a.json is no regular file")
    with pytest.raises(CheckpointError, match="a pipe"):
        storage.Files(str(made), {"a.json": "0" * 64}, {}).json("a.json")
    (made / "a.json").unlink()
    (made / "a.json").mkdir()
    refused(made, "a.json is no regular file")
    (made / "a.json").rmdir()
    (tmp_path / "a.json").rename(made / "a.json")
    storage.opened(made).verify()
    (made / "below").rename(tmp_path / "below")
    (made / "below").symlink_to(tmp_path / "below")
    refused(made, "below")
    (made / "below").unlink()
    (tmp_path / "below").rename(made / "below")
    for name in ("more", "below/more", "below/.hidden", "below/deep/x.json"):
        (made / name).write_text("{}")
        refused(made, f"holds '{name}'")
        (made / name).unlink()
    (made / ".tune_metadata").write_text("of somebody else, and never opened")
    storage.opened(made).verify()
    (made / "metadata.json").unlink()
    os.mkfifo(made / "metadata.json")
    refused(made, "a pipe")


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../x", "./a.json", "a//b", ".hidden", "x\n", "y" * 300, ""]
)
def test_names_that_lead_elsewhere_are_refused(made, name):
    reseal(made, lambda manifest: manifest["sha256"].update({name: "0" * 64}))
    refused(made, "no name of a file")


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.pop("sha256"),
        lambda manifest: manifest.update(sha256=[]),
        lambda manifest: manifest["sha256"].update({"a.json": 5}),
        lambda manifest: manifest["sha256"].update({"a.json": "xyz"}),
        lambda manifest: manifest.update(sha256={f"f{i}": "0" * 64 for i in range(10_001)}),
    ],
)
def test_manifests_that_say_nothing(made, change):
    reseal(made, change)
    refused(made, "damaged")


def test_a_changed_byte_is_noticed_wherever_it_is_read(made):
    whole = (made / "below/deep/b.safetensors").read_bytes()
    (made / "below/deep/b.safetensors").write_bytes(whole[:-1] + b"\1")
    files = storage.opened(made)
    with pytest.raises(CheckpointError, match="checksum"):
        files.arrays("below/deep/b.safetensors")
    refused(made, "checksum")
    text = (made / "a.json").read_bytes()
    (made / "a.json").write_bytes(text.replace(b"2.5", b"2.6"))
    with pytest.raises(CheckpointError, match="checksum"):
        files.json("a.json")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a": 1, "a": 2}', "'a' stands twice"),
        (b"[NaN]", "NaN"),
        (b"[-Infinity]", "Infinity"),
        (b"[1e999]", "too large"),
        (b"[" + b"9" * 400 + b"]", "400 digits"),
        (b"[" + b"9" * 5000 + b"]", "digits"),
        (b"[" * 65 + b"]" * 65, "levels deep"),
        (b"[" * 100_000, "levels deep"),
        (b'{"a":' * 3000 + b"1" + b"}" * 3000, "levels deep"),
        (b'"' + b"x" * (2**20 + 1) + b'"', "a string of"),
        (b'{"' + b"k" * 5000 + b'": 1}', "a key of 5000"),
        ("[\u00e9]".encode(), "ascii"),
        (b"[" + b"0," * 1_000_001 + b"0]", "values"),
        (b" " * (32 * 2**20 + 1), "bytes"),
        (b"[1,]", "Expecting"),
        (b"", "Expecting"),
    ],
)
def test_json_that_is_refused(text, reason):
    with pytest.raises(CheckpointError, match=f"here: cannot be read.*{reason}"):
        parse_json(text, "here")


def test_json_that_is_read():
    value = {"state": 2**127 + 1, "x": [1e-300, "[{\"'\\", None, True], "\x1b": {}}
    for _ in range(MAX_NESTING - 3):
        value = {"in": value}
    assert parse_json(encode_json(value, "here"), "here") == value
    with pytest.raises(CheckpointError, match="cannot be written.*levels"):
        encode_json([[[value]]], "here")
    with pytest.raises(CheckpointError, match="cannot be written"):
        encode_json([float("nan")], "here")


@pytest.mark.parametrize("unit", [b"[],", b'{"a":1},', b'"ab",', b'"\\ud83d\\ude00aaaaaaaaaaaaaa",', b"1234567,"])
def test_json_takes_less_memory_than_is_promised(unit):
    text = b"[" + unit * (450_000) + b"0]"
    tracemalloc.start()
    try:
        parse_json(text, "here")
        assert tracemalloc.get_traced_memory()[1] < 300 * 2**20
    finally:
        tracemalloc.stop()


def test_a_failed_write_leaves_the_old_one_and_nothing_else(made):
    def fails(writer):
        writer.json("other.json", 1)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        storage.write(made, fails)
    assert [path.name for path in made.parent.iterdir()] == ["made"]
    storage.opened(made).verify()
    storage.write(made, lambda writer: {"format_version": 8})
    assert storage.opened(made).about["format_version"] == 8
    assert [path.name for path in made.parent.iterdir()] == ["made"] and len(list(made.iterdir())) == 1


def test_leftovers_of_killed_processes_are_removed_and_those_of_living_ones_are_not(made):
    dead, living = made.parent / ".jaxrl-dead", made.parent / ".jaxrl-living"
    for path in (dead, living):
        (path / "below").mkdir(parents=True)
    (made.parent / ".jaxrl-file").write_text("of nobody")
    descriptor = os.open(living, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    storage.write(made, fill)
    os.close(descriptor)
    assert not dead.exists() and living.exists()


def test_a_dropped_directory_is_never_half_there(made, monkeypatch):
    seen = []
    removed = shutil.rmtree
    monkeypatch.setattr(
        "jaxrl.storage.directory.shutil.rmtree",
        lambda path, **options: (seen.append(made.exists()), removed(path, **options)),
    )
    storage.drop(made)
    assert seen == [False] and not list(made.parent.iterdir())


def test_a_short_write_is_written_on(tmp_path, monkeypatch):
    import io

    whole = io.FileIO.write
    opened = os.fdopen

    class Short(io.FileIO):
        def write(self, data):
            return whole(self, memoryview(data)[:7])

    monkeypatch.setattr("jaxrl.storage.directory.os.fdopen", lambda fd, *_, **__: Short(fd, "wb"))
    storage.write(tmp_path / "made", fill)
    monkeypatch.setattr("jaxrl.storage.directory.os.fdopen", opened)
    storage.opened(tmp_path / "made").verify()
    assert storage.opened(tmp_path / "made").json("a.json") == {"x": [1, 2.5, None]}
