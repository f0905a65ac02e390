"""Structure-aware mutations of checkpoints, their digests made again, and what becomes of those who load them.

By hand: `python tests/storage/fuzz.py --mutations 100000 [--seed 1] [--start 40000]`. Mutation i of a seed is always
the same, so that `--start` goes on, and `--start i --mutations 1` repeats a finding.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

TIMEOUT_S = 5
SPARE = 300 * 2**20
CANARY = "canary_of_the_fuzzer"

# Values that stand in for others: of other types, sizes, signs, lengths; names and paths that must not be followed.
STRANGE: list[Any] = [
    None, True, False, 0, -1, 1, 2, 2**31, 2**63, 2**64, 10**30, -(10**9), 10**6, 1e308, -0.5, 1e-300, "", "x", "test",
    "\x1b]0;owned\x07", "\u202e", "y" * 300, "y" * 70_000, "/etc/passwd", "../../etc/passwd", "~/x", "PCG64", "Philox",
    f"{CANARY}:Env", f"{CANARY}:Id-v0", f"{CANARY}", "O", "float128", "nan", [], [[]], {}, [1, 2, 3], [None] * 5,
    {"$ref": f"{CANARY}:f"}, {"$ref": "os:getcwd"}, {"$ref": "jaxrl.envs.creation:_from_module"}, {"$ref": 5},
    {"$registered": "env:CartPole-v1"}, {"$registered": "function:nope"}, {"$registered": "x"}, {"$hole": "env"},
    {"$float": "inf"}, {"$float": "nan"}, {"$float": "1"}, {"$tuple": []}, {"$tuple": [1, {}]}, {"$tuple": 3},
    {"$dict": [[1, 2]]}, {"$dict": [[[], 2]]}, {"$array": "nope"}, {"$scalar": "nope"}, {"$array": 3}, {"$x": 1},
    {"$type": "SampleBatch", "value": {}}, {"$type": "os", "value": 1}, {"$space": {"type": "Discrete", "n": 3}},
    {"$space": {"type": "Box", "low": 0.0, "high": 1.0, "shape": [600_000_000], "dtype": "float32"}},
    {"$space": {"type": "Box", "low": 0.0, "high": 1.0, "shape": [2], "dtype": "O"}},
]  # fmt: skip


# ---------------------------------------------------------------- mutations


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values below a JSON value."""
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*path, key))
    return found


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    at(value, path[:-1])[path[-1]] = new
    return value


def mutate_json(data: Any, rng: random.Random) -> Any:
    """One to three changes of a JSON value."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        paths = places(data)
        path = rng.choice(paths)
        old = at(data, path)
        kind = rng.randrange(9)
        if kind == 0 and path:  # one missing
            parent = at(data, path[:-1])
            parent.pop(path[-1])
        elif kind == 1 and isinstance(old, dict):  # one too many
            old[rng.choice(("more", "$ref", "$tuple", "\x1b", "k" * 300, "k" * 5000))] = rng.choice(STRANGE)
        elif kind == 2 and isinstance(old, list):
            old.insert(rng.randrange(len(old) + 1), rng.choice(STRANGE))
        elif kind == 3:  # another value of this file
            data = put(data, path, json.loads(json.dumps(at(data, rng.choice(paths)))))
        elif kind == 4 and isinstance(old, int | float) and not isinstance(old, bool):
            data = put(data, path, rng.choice((-old, old + 1, old - 1, old * 1000, old * 10**9, float(old), str(old))))
        elif kind == 5:
            nested = old
            for _ in range(rng.choice((2, 30, 70, 900))):
                nested = {"value": nested} if rng.random() < 0.5 else [nested]
            data = put(data, path, nested)
        elif kind == 6 and isinstance(old, list) and old:
            data = put(data, path, old * rng.choice((2, 50)) if rng.random() < 0.5 else old[:-1])
        else:
            data = put(data, path, rng.choice(STRANGE))
    return data


def spoil_text(text: str, rng: random.Random) -> bytes:
    """JSON text that no writer of ours makes: keys twice, NaN, endless numbers, depth, cut, other encodings."""
    place = rng.randrange(len(text))
    colon = text.find(":", place)
    match rng.randrange(8):
        case 0:
            return (text[: len(text) - 2] + ', "env": 1, "env": 2}').encode()
        case 1:
            return (text[: colon + 1] + rng.choice(("NaN", "-Infinity", "1e999", "9" * 400)) + ",").encode()
        case 2:
            return ("[" * rng.choice((65, 3000, 200_000))).encode() + text.encode()
        case 3:
            return text[:place].encode()
        case 4:
            return text.encode("utf-16")
        case 5:
            return b"[" + b"[]," * rng.choice((10, 1_100_000)) + b"1]"
        case 6:
            return text.encode() + bytes(rng.randrange(256) for _ in range(20))
        case _:
            return (text[:place] + rng.choice('"{}[],:\\\x00e1') + text[place + 1 :]).encode("latin-1", "replace")


def mutate_arrays(data: bytes, rng: random.Random) -> bytes:
    """A change of a safetensors file: of its header, or of its numbers."""
    (length,) = struct.unpack("<Q", data[:8])
    header, rows = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
    names = [name for name in header if name != "__metadata__"]
    if not names or rng.random() < 0.1:
        return struct.pack("<Q", rng.choice((0, 1, 2**62, 2**64 - 1, length + 1, len(data)))) + data[8:]
    name = rng.choice(names)
    entry = header[name]
    kind = rng.randrange(9)
    if kind == 0:
        entry["shape"] = rng.choice(
            (
                [10**9],
                [-1],
                [2**62, 2**62],
                [0, 2**61],
                [],
                [*entry["shape"], 1],
                entry["shape"][::-1],
                "x",
                [1.5],
                None,
            )
        )
    elif kind == 1:
        entry["dtype"] = rng.choice(("F32", "F64", "U8", "BOOL", "I64", "BF16", "O", None, 7))
    elif kind == 2:
        begin, end = entry["data_offsets"]
        entry["data_offsets"] = rng.choice(([begin + 8, end + 8], [0, 10**12], [end, begin], [begin], "x", [-8, 0]))
    elif kind == 3:
        header[rng.choice(("more", "k" * 5000, "\x1b"))] = header.pop(name)
    elif kind == 4:
        header[name], header[rng.choice(names)] = header[rng.choice(names)], header[name]
    elif kind == 5:
        header["__metadata__"] = rng.choice(
            ({}, [], {"notes": 1}, {"notes": "[]"}, {"notes": json.dumps({name: {"key_impl": "test"}})},
             {"notes": json.dumps({name: {"dtype": "bfloat16"}})}, {"format_version": "9"})
        )  # fmt: skip
    elif rows:
        begin, end = entry["data_offsets"]
        size = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4}.get(entry["dtype"], 1)
        for _ in range(rng.choice((1, 5, max(1, (end - begin) // size)))):
            if end - begin < size:
                break
            place = begin + size * rng.randrange((end - begin) // size)
            rows[place : place + size] = rng.choice((b"\xff" * size, b"\0" * size, rng.randbytes(size), b"\x7f" * size))
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(rows)


def rearrange(path: pathlib.Path, names: list[str], rng: random.Random) -> None:
    """Files that are missing, links, pipes, swapped, or too many."""
    name, other = rng.choice(names), rng.choice(names)
    file = path / name
    match rng.randrange(10):
        case 0:
            file.unlink()
        case 1:
            file.unlink()
            file.symlink_to(rng.choice(("/etc/passwd", "/dev/zero", "/dev/stdin", str(path / other), "nowhere")))
        case 2:
            file.unlink()
            os.mkfifo(file)
        case 3:
            content = file.read_bytes()
            file.write_bytes((path / other).read_bytes())
            (path / other).write_bytes(content)
        case 4:
            (path / rng.choice(("more", "replay", "x.pkl", ".hidden"))).mkdir(exist_ok=True)
            (file.parent / rng.choice(("more.json", f"{CANARY}.py", ".x"))).write_text("1")
        case 5:
            file.unlink()
            file.mkdir()
        case 6:
            os.mkfifo(file.parent / "pipe")
        case 7:
            os.truncate(file, rng.choice((0, 1, 200 * 2**30)))  # sparse
        case 8:
            file.chmod(0)
        case _:
            file.write_bytes(rng.randbytes(200))


def reseal(path: pathlib.Path, rng: random.Random) -> None:
    """Makes digests and checksum right again, most of the time."""
    sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
    from jaxrl import storage

    file = path / "metadata.json"
    if not file.is_file() or file.is_symlink() or file.stat().st_size > 2**26 or rng.random() < 0.03:
        return
    try:
        manifest = json.loads(file.read_bytes())
        manifest.pop("checksum", None)
        for name in manifest.get("sha256", ()):
            listed = path / name
            if listed.is_file() and not listed.is_symlink() and listed.stat().st_size < 2**30:
                manifest["sha256"][name] = hashlib.sha256(listed.read_bytes()).hexdigest()
        file.write_text(json.dumps({**manifest, "checksum": storage.checksum(manifest)}))
    except (ValueError, TypeError, AttributeError, RecursionError, OSError):
        return  # what cannot be sealed is refused for that


def mutate(path: pathlib.Path, rng: random.Random) -> str:
    """Changes one thing in a checkpoint; returns what."""
    names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
    name = rng.choice(names)
    file = path / name
    how = rng.random()
    if how < 0.12:
        what = "files"
        rearrange(path, names, rng)
    elif name.endswith(".json"):
        what = f"{file.name}, values" if how < 0.85 else f"{file.name}, text"
        text = file.read_text()
        changed = json.dumps(mutate_json(json.loads(text), rng)).encode() if how < 0.85 else spoil_text(text, rng)
        file.write_bytes(changed)
    else:
        what = f"{file.name}, header or numbers"
        file.write_bytes(mutate_arrays(file.read_bytes(), rng))
    reseal(path, rng)
    return what


# ---------------------------------------------------------------- the checkpoints


SMALL: dict[str, Any] = {"seed": 1, "num_envs_per_worker": 2, "model": {"fcnet_hiddens": [8]}, "compile_cache": False}
REPLAY: dict[str, Any] = {
    **SMALL,
    "buffer_size": 64,
    "learning_starts": 16,
    "train_batch_size": 8,
    "timesteps_per_iteration": 32,
    "store_buffer_in_checkpoints": True,
    "prioritized_replay": True,
    "hiddens": [8],
    "n_step": 2,
}
FRAGMENTS: dict[str, Any] = {"rollout_fragment_length": 8, "train_batch_size": 16, "sgd_minibatch_size": 0}


def trainers() -> dict[str, Callable[[], Any]]:
    """Small trainers of the kinds that checkpoints are made of; each loads again and again."""
    from jaxrl.algorithms.dqn import DQNTrainer
    from jaxrl.algorithms.ppo import PPOTrainer
    from jaxrl.algorithms.r2d2 import R2D2Trainer

    recurrent = {"model": {"fcnet_hiddens": [8], "lstm_cell_size": 4, "max_seq_len": 4}, "rollout_fragment_length": 8}
    several = {**SMALL, **FRAGMENTS, "env": "MultiAgentCartPole", "env_config": {"num_agents": 2}}
    return {
        "PPO": lambda: PPOTrainer(config={**SMALL, **FRAGMENTS, "env": "CartPole-v1"}),
        "DQN": lambda: DQNTrainer(config={**REPLAY, "env": "CartPole-v1"}),
        "R2D2": lambda: R2D2Trainer(config={**REPLAY, **recurrent, "env": "CartPole-v1"}),
        "compiled": lambda: DQNTrainer(config={**REPLAY, "env": "jax/CartPole-v1", "engine": "compiled"}),
        "multi-agent": lambda: PPOTrainer(config=several),
    }


# ---------------------------------------------------------------- the watch


class Watch:
    """Notes what loading does that it must not: imports, foreign files, processes, memory, time."""

    def __init__(self, below: pathlib.Path):
        self.below, self.on, self.seen = str(below), False, []
        self.folders = [
            str(pathlib.Path(sys.prefix).resolve()),
            sys.base_prefix,
            str(pathlib.Path(__file__).parents[2]),
        ]
        self.folders += [str(pathlib.Path(folder).resolve()) for folder in sys.path if folder]
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "import" and CANARY in str(arguments[0]):
            self.seen.append(f"import {arguments[0]}")
        elif event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect", "ctypes.dlopen"):
            self.seen.append(f"{event} {arguments}"[:200])
        elif event == "open" and isinstance(arguments[0], str):
            name = os.path.abspath(arguments[0]) if os.path.sep in arguments[0] else arguments[0]
            if os.path.sep in name and not name.startswith((self.below, *self.folders, "/proc/", "/sys/")):
                self.seen.append(f"open {name}")
            if CANARY in name:
                self.seen.append(f"open {name}")


class Late(BaseException):
    """A case that took too long."""


def peak() -> int:
    """Most resident memory since `reset_peak`, bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def reset_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def run(mutations: int, seed: int, start: int, work: pathlib.Path, say: Callable[[str], None] = print) -> list[str]:
    """Loads mutated checkpoints; returns what went wrong, one line each."""
    from jaxrl.types import CheckpointError, ConfigError, JaxrlError

    os.environ.setdefault("JAXRL_COMPILE_CACHE", "0")
    alive, originals = {}, {}
    for name, make in trainers().items():
        alive[name] = make()
        alive[name].train()
        originals[name] = pathlib.Path(alive[name].save(str(work / "originals" / name)))
        alive[name].restore(str(originals[name]))
        type(alive[name]).from_checkpoint(originals[name], results_dir=work / "results").stop()
    watch = Watch(work)
    signal.signal(signal.SIGALRM, _late)
    faulthandler.enable()
    limit = peak() + 4 * 2**30
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    wrong, outcomes, kinds = [], Counter(), sorted(alive)
    begun = time.monotonic()
    for i in range(start, start + mutations):
        rng = random.Random(f"{seed}/{i}")
        name = rng.choice(kinds)
        path = work / "case"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(originals[name], path)
        what = mutate(path, rng)
        size = sum(p.lstat().st_blocks * 512 for p in path.rglob("*"))
        anew = rng.random() < (0.5 if "config.json" in what else 0.02)
        trainer, outcome, fault = alive[name], "loaded", ""
        reset_peak()
        before = peak()
        watch.seen, watch.on = [], True
        signal.setitimer(signal.ITIMER_REAL, TIMEOUT_S * (4 if anew else 1))  # a new trainer compiles
        try:
            if anew:
                made = type(trainer).from_checkpoint(path, results_dir=work / "results")
                made.stop()
            else:
                trainer.restore(str(path))
        except (CheckpointError, ConfigError) as error:
            outcome = type(error).__name__
            if any(not c.isprintable() and c not in "\n\t" for c in str(error)):
                fault = f"control characters in {error!r}"
        except JaxrlError as error:
            outcome = type(error).__name__
            fault = "" if anew and outcome == "EnvError" else f"{outcome}: {error}"
        except Late:
            fault = f"no end after {TIMEOUT_S} s"
        except BaseException as error:
            fault = f"{type(error).__name__}: {error}"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            watch.on = False
        if not fault and watch.seen:
            fault = "; ".join(watch.seen[:3])
        if not fault and peak() - before > size + SPARE:
            fault = f"{(peak() - before) >> 20} MB for {size >> 10} kB"
        if not fault and outcome == "loaded" and not anew and rng.random() < 0.3:
            fault = _trains(trainer)
            trainer.restore(str(originals[name]))
        outcomes[outcome] += 1
        if fault:
            wrong.append(f"{i} {name} {what}{' (anew)' if anew else ''}: {fault}"[:400])
            say(wrong[-1])
            trainer.restore(str(originals[name]))
        if (i + 1) % 1000 == 0:
            say(f"{i + 1}: {dict(outcomes)}, {len(wrong)} wrong, {time.monotonic() - begun:.0f} s")
    for trainer in alive.values():
        trainer.stop()
    say(f"{mutations} mutations: {dict(outcomes)}, {len(wrong)} wrong, {time.monotonic() - begun:.0f} s")
    return wrong


def _trains(trainer: Any) -> str:
    """Trains one iteration after a load: what it raises, or an empty text."""
    from jaxrl.types import NonFiniteError

    try:
        trainer.train()
    except NonFiniteError:
        return ""  # numbers are the file's own
    except BaseException as error:
        return f"found out in train(): {type(error).__name__}: {error}"
    return ""


def _late(*_: Any) -> None:
    raise Late


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0)
    given = parser.parse_args()
    import warnings

    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as work:
        (pathlib.Path(work) / "modules").mkdir()
        (pathlib.Path(work) / "modules" / f"{CANARY}.py").write_text("raise SystemExit('the canary was imported')\n")
        sys.path.append(str(pathlib.Path(work) / "modules"))
        return min(1, len(run(given.mutations, given.seed, given.start, pathlib.Path(work))))


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
    sys.exit(main())
