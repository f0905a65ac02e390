"""Env steps per second of DQN in one CartPole, with a gradient step per env step, in steady state."""

from __future__ import annotations

from measuring import Options, Row, best, has_peer, median_ratio, medians, missing_note, peer_script, rounded, script
from off_policy import SB3, SB3_ONE_THREAD, Commands, fused_peer, peers, qualify, speeds_of
from off_policy_settings import DQN

TARGET = 2.0
CLEANRL = "CleanRL's JAX DQN"


def measure(options: Options) -> Row:
    notes: list[str] = []
    warmup, steps = (1200, 300) if options.quick else (3000, 2000)
    others, qualifying = qualify(peers("dqn", "throughput", notes), warmup=1200, steps=300 if options.quick else 1000)
    if has_peer("cleanrl"):
        others[CLEANRL] = (peer_script("contestant_cleanrl.py", "throughput"), {})
    else:
        notes.append(missing_note("cleanrl"))
    fused = fused_peer("dqn", DQN["fused"], others)
    commands: Commands = {"jaxrl": (script("contestant_off_policy.py", "throughput", "dqn"), {}), **others, **fused}
    results = speeds_of(commands, warmup=warmup, steps=steps, rounds=options.choose(9, 2))

    peer = best(results, [SB3, SB3_ONE_THREAD, "sbx", CLEANRL])
    ratio = median_ratio(results["jaxrl"], results[peer]) if peer else None
    speeds = medians(results)
    rest = [f"{name} {speeds[name]:,.0f}" for name in results if name not in ("jaxrl", peer)]
    against = f"; {ratio:.2f} x {peer} ({speeds[peer]:,.0f})" if peer and ratio else ""
    notes.append(f"{DQN['fused']} env steps, then {DQN['fused']} gradient steps in one call; the peers alternate them")
    return Row(
        work="DQN, CartPole-v1, one env, a gradient step per env step, batch 64, nets 64x64, env steps/s",
        target=f">= {TARGET:g} x the best of CleanRL's JAX DQN, stable-baselines3 and sbx",
        measured=f"{speeds['jaxrl']:,.0f}{against}{'; ' if rest else ''}{', '.join(rest)}",
        met=None if ratio is None else ratio >= TARGET,
        figures={
            "ratio": ratio,
            "best_peer": peer,
            "env_steps_per_s": {name: rounded(values, 0) for name, values in results.items()},
            "qualifying_env_steps_per_s": {name: rounded(values, 0) for name, values in qualifying.items()},
        },
        notes=notes,
    )
