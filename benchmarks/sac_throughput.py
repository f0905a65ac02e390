"""Env steps per second of SAC in one Pendulum, with a gradient step per env step; and what its update alone allows."""

from __future__ import annotations

from measuring import Options, Row, best, median_ratio, medians, rounded, script
from off_policy import SB3, SB3_ONE_THREAD, Commands, fused_peer, peers, qualify, speeds_of
from off_policy_settings import SAC

TARGET, SHARE = 1.3, 0.9
ONE, SEVERAL = "plain update", f"plain update, {SAC['fused']} a call"


def measure(options: Options) -> Row:
    notes: list[str] = []
    warmup, steps = (400, 40) if options.quick else (600, 300)
    others, qualifying = qualify(peers("sac", "throughput", notes), warmup=350, steps=20 if options.quick else 100)
    torch = [name for name in others if name in (SB3, SB3_ONE_THREAD)]
    for name in torch:  # far behind: the qualifying rounds are enough
        others.pop(name)
    commands: Commands = {
        "jaxrl": (script("contestant_off_policy.py", "throughput", "sac"), {}),
        ONE: (script("plain_sac.py"), {}),
        SEVERAL: (script("plain_sac.py", "--fused"), {}),
        **others,
        **fused_peer("sac", SAC["fused"], others),
    }
    results = speeds_of(commands, warmup=warmup, steps=steps, rounds=options.choose(9, 2))

    speeds = medians(results)
    plain = best(results, [ONE, SEVERAL])
    assert plain is not None
    share = median_ratio(results["jaxrl"], results[plain])
    ratio = median_ratio(results["jaxrl"], results["sbx"]) if "sbx" in results else None
    against = f"{ratio:.2f} x sbx ({speeds['sbx']:,.0f}); " if ratio else ""
    rest = [f"{name} {speeds[name]:,.0f}" for name in results if name not in ("jaxrl", "sbx", plain)]
    rest += [f"{name} {medians(qualifying)[name]:,.0f} (2 short rounds)" for name in torch]
    notes.append(f"{SAC['fused']} env steps, then {SAC['fused']} gradient steps in one call; sbx alternates them")
    share_text = f"{share:.0%} of the {plain} ({speeds[plain]:,.0f})"
    return Row(
        work="SAC, Pendulum-v1, one env, a gradient step per env step, batch 256, nets 256x256, env steps/s",
        target=f">= {TARGET:g} x sbx; >= {SHARE:.0%} of what the update alone, as one plain jitted function, allows",
        measured=f"{speeds['jaxrl']:,.0f}; {against}{share_text}; {', '.join(rest)}",
        met=None if ratio is None else ratio >= TARGET and share >= SHARE,
        figures={
            "ratio": ratio,
            "share_of_plain_update": share,
            "plain_update": plain,
            "env_steps_per_s": {name: rounded(values, 1) for name, values in results.items()},
            "qualifying_env_steps_per_s": {name: rounded(values, 1) for name, values in qualifying.items()},
        },
        notes=notes,
    )
