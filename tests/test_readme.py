"""The README: every block of it runs as printed, and what it names exists."""

from __future__ import annotations

import os
import pathlib
import re
import runpy
import shlex
import subprocess
import sys
import tomllib

import pytest

from jaxrl import registry

ROOT = pathlib.Path(__file__).resolve().parents[1]
FLOORS = runpy.run_path(str(ROOT / "tests" / "test_floors.py"))["FLOORS"]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
COMMANDS = [
    shlex.split(line, comments=True) for language, code in BLOCKS if language == "shell" for line in code.splitlines()
]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("home")


def run(words: list[str], home: pathlib.Path, **options) -> str:
    """Runs a program with results below `home`, and the compiled programs that other tests left."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(pathlib.Path.home() / ".cache")
    env = {**os.environ, "JAXRL_RESULTS_DIR": str(home / "ray_results"), "HOME": str(home), "XDG_CACHE_HOME": cache}
    done = subprocess.run(words, cwd=home, env=env, capture_output=True, text=True, timeout=500, check=False, **options)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def script(blocks: list[str], home: pathlib.Path) -> str:
    """Runs blocks one after the other, as a reader who pastes them."""
    (home / "readme.py").write_text("\n".join(blocks))
    return run([sys.executable, "-W", "error::SyntaxWarning", "readme.py"], home)


def test_every_block_is_of_a_kind_that_is_tested():
    assert {language for language, _ in BLOCKS} == {"", "python", "shell"}
    assert {words[0] for words in COMMANDS} == {"make", "jaxrl"}


@pytest.mark.ray
@pytest.mark.slow
def test_the_tune_block_runs(home):
    assert "tune.run" in PYTHON[0]
    script(PYTHON[:1], home)
    assert list(home.rglob("checkpoint_*/metadata.json"))


@pytest.mark.slow
def test_the_other_python_blocks_run_in_their_order(home):
    out = script(PYTHON[1:], home)
    printed = out.strip().splitlines()
    assert re.search(r"^[\d.]+$", out, re.MULTILINE), "the first block prints a mean reward"
    assert pathlib.Path(printed[-1]).name == "checkpoint_000010", "the last prints the best member's checkpoint"
    assert any("8 members, 10 iterations" in line for line in printed)


@pytest.mark.slow
def test_the_commands_run(home):
    for words in COMMANDS:
        if words[0] == "make":
            assert (
                subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, check=False).returncode == 0
            )
            continue
        out = run([sys.executable, "-m", "jaxrl", *(word.replace("~", str(home)) for word in words[1:])], home)
        assert ("Checkpoint:" in out) if words[1] == "train" else ("Mean reward of" in out)


def test_its_floors_are_the_tested_ones():
    rows = re.findall(r"^(\d)  (.+)$", TEXT, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(9, -1, -1))
    for number, row in rows:
        for name in re.findall(r"(\w+(?:/|\.py))", row):
            assert (ROOT / "jaxrl" / name).exists(), f"floor {number}: there is no jaxrl/{name}"
            assert FLOORS[name.removesuffix("/").removesuffix(".py")] == int(number)


def test_its_extras_targets_files_and_algorithms_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(re.findall(r"jaxrl\[(\w+)\]", TEXT)) <= set(project["optional-dependencies"])
    assert set(re.findall(r"extra `(\w+)`", TEXT)) <= set(project["optional-dependencies"])
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([\w-]+)`", TEXT):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"there is no target {target}"
    for link in re.findall(r"\]\((?!http)([^)#]+)", TEXT):
        assert (ROOT / link).exists(), f"there is no {link}"
    table = re.findall(r"^\| ([A-Za-z0-9_]+)[^|]*\|.*\]\(jaxrl/algorithms/", TEXT, re.MULTILINE)
    assert sorted(table) == sorted(registry.ALGORITHMS)
