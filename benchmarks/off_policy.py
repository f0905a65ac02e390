"""What the rows of DQN and SAC share: who takes part, and how times to a solved problem are taken and compared."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from measuring import (
    Options,
    Row,
    alternate_children,
    best,
    has_peer,
    missing_note,
    peer_script,
    rounded,
    script,
)
from time_to_solve import solve as solve_once

Commands = dict[str, tuple[Sequence[Any], Mapping[str, str]]]
SB3, SB3_ONE_THREAD = "stable-baselines3", "stable-baselines3, 1 thread"
# A peer that takes so many times as long as the fastest one for the first seed is not run further.
HOPELESS = 1.5


def speeds_of(commands: Commands, *, warmup: int, steps: int, rounds: int) -> dict[str, list[float]]:
    """Env steps per second of each contestant, round by round, in turns of `steps` env steps."""
    return alternate_children(
        commands,
        warmup={"steps": warmup},
        request={"steps": steps},
        rounds=rounds,
        figure=lambda report: report["steps_per_s"],
    )


def peers(algorithm: str, mode: str, notes: list[str]) -> Commands:
    """Commands of the installed ones among stable-baselines3 (torch's threads as by default, and one) and sbx."""
    commands: Commands = {}
    contestant = ("contestant_sb3_off_policy.py", mode, algorithm)
    if has_peer("stable_baselines3"):
        sb3 = peer_script(*contestant, "--library", "sb3")
        commands |= {SB3: (sb3, {}), SB3_ONE_THREAD: ([*sb3, "--threads", "1"], {})}
    else:
        notes.append(missing_note("stable_baselines3"))
    if has_peer("sbx"):
        commands["sbx"] = (peer_script(*contestant, "--library", "sbx"), {})
    else:
        notes.append(missing_note("sbx"))
    return commands


def fused_peer(algorithm: str, steps: int, commands: Commands) -> Commands:
    """sbx once more, with as many env steps, then gradient steps in one call, as jaxrl: for comparison."""
    if "sbx" not in commands:
        return {}
    command, env = commands["sbx"]
    return {f"sbx, {steps} at once": ([*command, "--fused"], env)}


def qualify(commands: Commands, *, warmup: int, steps: int) -> tuple[Commands, dict[str, list[float]]]:
    """Two short rounds between stable-baselines3 with several threads and with one, of which the better goes on."""
    variants = {name: command for name, command in commands.items() if name in (SB3, SB3_ONE_THREAD)}
    if len(variants) < 2:
        return commands, {}
    results = speeds_of(variants, warmup=warmup, steps=steps, rounds=2)
    better = best(results, list(results))
    return {name: command for name, command in commands.items() if name not in variants or name == better}, results


def solve_row(
    options: Options,
    *,
    algorithm: str,
    peers: Mapping[str, Sequence[Any]],
    notes: Sequence[str],
    goal: Mapping[str, Any],
    caps: Mapping[str, float],
    target: float,
    texts: tuple[str, str],
) -> Row:
    """Seconds of training, compilation included, until the last episodes average a reward; peers against jaxrl.

    A run that does not get there within the caps counts as having taken `caps["seconds"]`, jaxrl's as a failure.

    Args:
        options: how much is measured.
        algorithm: dqn or sac.
        peers: their commands by name.
        notes: what there is to say so far.
        goal: `episodes`, and the `reward` that they average.
        caps: `seconds` of a run, and `steps`, which both start with the trainer.
        target: largest ratio of jaxrl's seconds to the best peer's.
        texts: the row's work and target in words.
    """
    commands = {"jaxrl": script("contestant_off_policy.py", "solve", algorithm), **peers}
    seconds_cap, steps_cap = caps["seconds"], caps["steps"]
    if options.quick:
        seconds_cap, steps_cap = min(seconds_cap, 10.0), min(steps_cap, 3000)
    arguments = ["--episodes", goal["episodes"], "--reward", goal["reward"]]
    arguments += ["--max-steps", int(steps_cap), "--max-seconds", seconds_cap]
    runs: dict[str, list[dict[str, Any]]] = {}
    said = [*notes]

    def run(name: str, seed: int) -> None:
        library = name.partition(",")[0]
        # A peer's cache matters once: later seeds compile the same programs in the same time.
        both = library == "jaxrl" or (library == "sbx" and seed == 0)
        caches = ("cold", "warm") if both else ("cold",) if library == "sbx" else ("",)
        with tempfile.TemporaryDirectory() as scratch:
            for cache in caches:
                done = solve_once([*commands[name], "--seed", seed, *arguments], library, scratch)
                counted = done["seconds"] if done["solved"] else max(seconds_cap, done["seconds"])
                done = {**done, "seed": seed, "counted": counted}
                runs.setdefault(f"{name}, {cache} cache" if cache else name, []).append(done)

    for seed in range(options.choose(3, 1)):
        for name in commands:
            run(name, seed)
        first = {name: (runs.get(name) or runs[f"{name}, cold cache"])[0]["counted"] for name in commands}
        rivals = [name for name in commands if name != "jaxrl"]
        if seed == 0 and rivals:
            fastest = min(first[name] for name in rivals)
            for name in [name for name in rivals if first[name] > HOPELESS * fastest]:
                commands.pop(name)
                said.append(f"{name}: {first[name]:.1f} s for the first seed: not run further")

    counted = {name: [done["counted"] for done in own] for name, own in runs.items()}
    if saved := _saved(counted):
        counted["sbx, warm cache"] = [max(0.0, seconds - saved) for seconds in counted["sbx, cold cache"]]
        said.append(f"sbx, warm cache: its cold runs less the {saved:.1f} s that the cache saved with the first seed")
    elif "sbx, warm cache" in counted:
        counted["sbx, warm cache"] = counted["sbx, cold cache"]
    said += [
        f"{name}: {len(lost)} of {len(own)} runs not there within {seconds_cap:g} s and {steps_cap:,.0f} steps; "
        f"such a run counts as {seconds_cap:g} s, or what it took if longer"
        for name, own in runs.items()
        if (lost := [done for done in own if not done["solved"]])
    ]
    return _solve_row(runs, counted, list(commands), target, texts, said)


def _saved(counted: Mapping[str, Sequence[float]]) -> float:
    """Seconds that a warm cache saved sbx with the first seed; 0 where it saved nothing."""
    if "sbx, warm cache" not in counted:
        return 0.0
    return max(0.0, counted["sbx, cold cache"][0] - counted["sbx, warm cache"][0])


def _solve_row(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    counted: Mapping[str, Sequence[float]],
    names: Sequence[str],
    target: float,
    texts: tuple[str, str],
    notes: Sequence[str],
) -> Row:
    without_cache = [name for name in names if name not in ("jaxrl", "sbx")]
    figures: dict[str, Any] = {"runs": runs}
    parts, met = [], None
    for cache in ("cold", "warm"):
        own = f"jaxrl, {cache} cache"
        candidates = [*without_cache, *([f"sbx, {cache} cache"] if "sbx" in names else [])]
        rival = best(counted, candidates, lowest=True)
        ours, whole = statistics.median(counted[own]), statistics.median(done["process_s"] for done in runs[own])
        part = f"{cache} cache {ours:.1f} s"
        if rival:
            theirs = statistics.median(counted[rival])
            figures[f"ratio_{cache}"] = ratio = ours / theirs
            figures[f"better_peer_{cache}"] = rival
            part += f" = {ratio:.2f} x {rival} ({theirs:.1f} s)"
            met = ratio <= target if met is None else met and ratio <= target
        parts.append(f"{part}, whole process {whole:.1f} s")
        if not all(done["solved"] for done in runs[own]):
            met = None if met is None else False
    figures["seconds"] = {name: rounded(values, 2) for name, values in counted.items()}
    steps = statistics.median(done["steps"] for done in runs["jaxrl, cold cache"])
    return Row(
        work=texts[0],
        target=texts[1],
        measured=f"{'; '.join(parts)}; {steps:,.0f} env steps",
        met=met,
        figures=figures,
        notes=notes,
    )
