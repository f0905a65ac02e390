"""Row 6: seconds of importing jaxrl, against the libraries that it stands on."""

from __future__ import annotations

import subprocess
import sys

from measuring import Options, Row, alternate, median_ratio, medians, rounded

TARGET = 1.2
IMPORTS = {
    "import jax, flax, optax": "import jax, flax, optax",
    "import jaxrl": "import jaxrl",
    "from jaxrl import build_policy": "from jaxrl import build_policy",
    "PPOTrainer": "from jaxrl.algorithms.ppo import PPOTrainer",
}


def seconds(statement: str) -> float:
    """Of an import in a fresh process, the interpreter's own start left out."""
    code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def measure(options: Options) -> Row:
    for statement in IMPORTS.values():
        seconds(statement)  # bytecode and files are cached from here on, for everyone

    results = alternate(
        {name: lambda statement=statement: seconds(statement) for name, statement in IMPORTS.items()},
        options.choose(11, 2),
    )
    base = "import jax, flax, optax"
    ratios = {name: median_ratio(results[name], results[base]) for name in IMPORTS if name != base}
    times = medians(results)
    rest = ", ".join(f"{name} {times[name]:.2f} s = {ratios[name]:.2f} x" for name in ratios if name != "import jaxrl")
    return Row(
        work="`import jaxrl`",
        target=f"<= {TARGET:g} x importing jax, flax and optax",
        measured=f"{times['import jaxrl']:.3f} s = {ratios['import jaxrl']:.3f} x ({times[base]:.2f} s); {rest}",
        met=ratios["import jaxrl"] <= TARGET,
        figures={"ratios": ratios, "seconds": {name: rounded(values) for name, values in results.items()}},
        notes=["`import jaxrl` is lazy: the other two figures are what a program pays once it uses it"],
    )
