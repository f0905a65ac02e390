"""Replay memory: a prioritised sample and update of a large buffer, and the bytes that Atari frames take."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

from measuring import Child, Options, Row, rounded, script

ROWS, BATCH, MILLISECONDS = 1_000_000, 512, 1.0
FRAMES, SHARE = 100_000, 1.05
FRAME_SHAPE, STACK, EPISODE = (84, 84), 4, 500


def measure(options: Options) -> Row:
    rows, frames = (50_000, 10_000) if options.quick else (ROWS, FRAMES)
    report = {}
    for part, size in (("priorities", rows), ("frames", frames)):
        with Child(script("replay.py", part, size, options.choose(9, 2))) as child:
            report |= child.report()
    times, share = report["milliseconds"], report["share"]
    median = sorted(times)[len(times) // 2]
    return Row(
        work=f"replay: prioritised sample of {BATCH} + update among {rows:,} rows; bytes of {frames:,} Atari frames",
        target=f"<= {MILLISECONDS:g} ms; <= {SHARE:g} x the frames' own bytes",
        measured=(
            f"{median:.2f} ms (sample {report['sample']:.2f}, update {report['update']:.2f}); {share:.3f} x "
            f"({report['resident_share']:.3f} x by the growth of the process)"
        ),
        met=median <= MILLISECONDS and share <= SHARE,
        figures={**report, "milliseconds": rounded(times, 4)},
        notes=[
            f"stacks of {STACK} frames of 84x84 bytes, with actions, rewards, ends and episode numbers; episodes of "
            f"{EPISODE} steps; a sample of 32 of them, 2 stacks each, takes {report['sample_of_32']:.2f} ms"
        ],
    )


def child_priorities(size: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of `sample` with importance weights, then `update`, on a full buffer of CartPole's rows."""
    import numpy as np

    from jaxrl.replay import prioritized_replay

    rng = np.random.default_rng(0)
    buffer = prioritized_replay(size, alpha=0.6)
    state, begun, steps, width = None, 0, 250, 20
    while state is None or state.added < size:
        fragment = fragment_of(rng.random((steps, width, 4), dtype=np.float32), begun, rng)
        state = buffer.add(buffer.init(fragment) if state is None else state, fragment)
        begun += width
    every = np.arange(size)
    state = buffer.update(state, every, rng.random(size) + 1e-6)

    calls, parts = 200, []
    for _ in range(rounds + 1):
        sampling = updating = 0.0
        for _ in range(calls):
            uniforms, priorities = rng.random(BATCH), rng.random(BATCH) + 1e-6
            started = time.perf_counter()
            batch = buffer.sample(state, uniforms, 0.4)
            sampled = time.perf_counter()
            state = buffer.update(state, batch["batch_indexes"], priorities)
            sampling += sampled - started
            updating += time.perf_counter() - sampled
        parts.append((1e3 * sampling / calls, 1e3 * updating / calls))
    parts = parts[1:]
    return {
        "milliseconds": [sum(part) for part in parts],
        "sample": sorted(part[0] for part in parts)[len(parts) // 2],
        "update": sorted(part[1] for part in parts)[len(parts) // 2],
    }


def child_frames(size: int, rounds: int) -> dict[str, Any]:
    """Bytes of a full buffer of stacked frames as a multiple of the frames' own."""
    import numpy as np

    from jaxrl.replay import uniform_replay

    rng = np.random.default_rng(0)
    buffer = uniform_replay(size, frame_stack=STACK)
    steps, width = EPISODE // 5, 4
    noise = rng.integers(0, 256, (steps + STACK, width, *FRAME_SHAPE), dtype=np.uint8)
    # Parts of an episode: its first one repeats a frame, the others go on where the one before ended.
    first = np.concatenate([np.repeat(noise[:1], STACK, axis=0), noise[1 : steps + 1]])
    then = np.concatenate([first[-STACK:], noise[1 : steps + 1]])
    parts = [stacks(first), *[stacks(then)] * 4]
    fragments = [
        fragment_of(part[:-1], 0, rng, last_obs=part[-1], t=i * steps, ended=i == len(parts) - 1)
        for i, part in enumerate(parts)
    ]
    state = buffer.init(fragments[0])
    before, i = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    while state.added < size:
        fragment = fragments[i % len(parts)]
        eps_id = fragment["eps_id"] + np.int32(i // len(parts) * width)
        state = buffer.add(state, fragment.with_columns(eps_id=eps_id))
        i += 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    own = size * FRAME_SHAPE[0] * FRAME_SHAPE[1]
    times = []
    for _ in range(50 * rounds):
        uniforms = rng.random(32)
        started = time.perf_counter()
        buffer.sample(state, uniforms)
        times.append(1e3 * (time.perf_counter() - started))
    return {
        "share": buffer.nbytes(state) / own,
        "resident_share": grown / own,
        "sample_of_32": sorted(times)[len(times) // 2],
    }


def stacks(frames: Any) -> Any:
    """Frames `[T + STACK - 1, B, ...]` as stacks `[T, B, ..., STACK]`, the newest last."""
    import numpy as np

    count = len(frames) - STACK + 1
    return np.stack([frames[i : i + count] for i in range(STACK)], axis=-1)


def fragment_of(obs: Any, begun: int, rng: Any, *, last_obs: Any = None, t: int = 0, ended: bool = True) -> Any:
    """A fragment `[T, B]`: an episode in each environment from its step `t` on, which the last row ends or not."""
    import numpy as np

    from jaxrl.data import SampleBatch

    steps, width = obs.shape[:2]
    last_obs = obs[-1] if last_obs is None else last_obs
    terminateds = np.zeros((steps, width), bool)
    terminateds[-1] = ended
    columns = {
        "obs": obs,
        "actions": rng.integers(0, 2, (steps, width), dtype=np.int32),
        "rewards": rng.random((steps, width), dtype=np.float32),
        "terminateds": terminateds,
        "truncateds": np.zeros((steps, width), bool),
        "eps_id": np.broadcast_to(np.arange(begun, begun + width, dtype=np.int32), (steps, width)),
        "t": np.broadcast_to(np.arange(t, t + steps, dtype=np.int32)[:, None], (steps, width)),
        "last_obs": last_obs,
    }
    if ended:
        ends = np.stack([np.full(width, steps - 1), np.arange(width)], axis=1).astype(np.int32)
        columns |= {"final_obs": last_obs, "final_index": ends}
    return SampleBatch(columns)


if __name__ == "__main__":
    from child import Reports

    reports = Reports()
    work = {"priorities": child_priorities, "frames": child_frames}[sys.argv[1]]
    reports.send(**work(int(sys.argv[2]), int(sys.argv[3])))
