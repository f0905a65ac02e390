"""Static rules: imports point down the floors, Ray stays out of pure modules, files are never unpickled, names."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "jaxrl"

FLOORS = {
    "types": 0,
    "dispatch": 0,
    "tracebacks": 0,
    "terminal": 0,
    "data": 1,
    "registry": 1,
    "config": 1,
    "config_json": 1,
    "coercion": 1,
    "retired": 1,
    "space_json": 1,
    "callbacks": 1,
    "schedules": 1,
    "trees": 1,
    "storage": 1,
    "metrics": 1,
    "execution.iterators": 1,
    "envs": 2,
    "losses": 2,
    "distributions": 2,
    "models": 3,
    "exploration": 3,
    "replay": 3,
    "offline": 3,
    "policies": 4,
    "rollout": 5,
    "execution": 6,
    "trainers": 7,
    "algorithms": 8,
    "cli": 9,
    "serving": 9,
    "tune": 9,
    "__main__": 9,
}

# The iterators know nothing of the rest of execution/: they are a library of their own, in these modules.
ITERATORS = {
    "iterators",
    "branches",
    "compiled_form",
    "concurrent_calls",
    "nodes",
    "on_worker",
    "stages",
    "waiting",
    "shards",
    "shard_actor",
    "parallel",
    "plan_view",
    "plan_drawing",
}

# Environments that step in processes of their own are sent there by value, over a pipe that no one else can write to.
MAY_PICKLE = {"jaxrl.envs.env_process": "cloudpickle", "jaxrl.envs.process_vector_env": "cloudpickle"}

# Units of one of these floors do not know one another; on others a unit may import its neighbours, not in a circle.
INDEPENDENT_FLOORS = {2, 3}
RAY_UNITS = {"trainers", "tune", "serving", "cli"}
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "base_class", "misc"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal", "joblib", "jsonpickle"}
FORBIDDEN_CALLS = {"eval", "exec"}
FORBIDDEN_YAML = {"load", "load_all", "unsafe_load", "full_load", "unsafe_load_all", "full_load_all"}
MAX_LINES = 420  # about 400


class Import(NamedTuple):
    """One imported module (absolute, dotted), its line, and whether it stands at module level outside TYPE_CHECKING."""

    target: str
    line: int
    runs_on_import: bool


def imports_of(module: str, tree: ast.Module, modules: frozenset[str], is_package: bool) -> Iterator[Import]:
    """Every import of a module, wherever it stands; `from jaxrl import x` is module `jaxrl.x` where there is one."""

    def visit(node: ast.AST, runs: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, runs)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if is_package else module.split(".")[:-1]
                package = package[: len(package) - node.level + 1]
                base = ".".join([*package, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield Import(inner if inner in modules else base, node.lineno, runs)
        inside = runs and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            inside = False
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    return visit(tree, True)


def unit_of(module: str) -> str:
    """The unit of a module that has a floor: `jaxrl.models.fcnet` is in `models`."""
    parts = module.split(".")[1:]
    if parts[:1] == ["execution"] and len(parts) > 1 and parts[1] in ITERATORS:
        return "execution.iterators"
    return parts[0] if parts else ""


def module_name(path: Path, root: Path) -> str:
    parts = [root.name, *path.relative_to(root).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def check(sources: Mapping[Path, str], root: Path) -> list[str]:
    """Returns every violation in a package, as `file:line: what`."""
    trees = {path: ast.parse(text, str(path)) for path, text in sources.items()}
    names = {path: module_name(path, root) for path in sources}
    modules = frozenset(names.values())
    problems: list[str] = []
    unit_edges: dict[str, set[str]] = {}
    module_edges: dict[str, set[str]] = {name: set() for name in modules}
    for path, tree in trees.items():
        name, where = names[path], path.relative_to(root.parent)
        found = list(imports_of(name, tree, modules, path.name == "__init__.py"))
        problems += [f"{where}:{line}: {what}" for line, what in _forbidden(name, tree, found)]
        problems += [f"{where}:{line}: {what}" for line, what in _ray(name, path, found)]
        problems += _names_and_size(where, sources[path])
        if name == root.name:
            # The package's own __init__ re-exports lazily: it must not load any floor but 0.
            bad = [item for item in found if item.runs_on_import and item.target.startswith("jaxrl.")]
            problems += [f"{where}:{i.line}: imports {i.target} eagerly" for i in bad if FLOORS.get(unit_of(i.target))]
            continue
        unit = unit_of(name)
        if unit not in FLOORS:
            problems.append(f"{where}:1: {unit!r} has no floor; add it to the design and to FLOORS")
            continue
        for item in found:
            if item.target == root.name or not item.target.startswith(f"{root.name}."):
                if item.target == root.name:
                    problems.append(f"{where}:{item.line}: imports the package itself; import the module that holds it")
                continue
            target = unit_of(item.target)
            if item.target in modules and item.runs_on_import:
                # Importing a module runs the __init__ of the packages that hold it, too.
                packages = {item.target.rsplit(".", depth)[0] for depth in range(item.target.count("."))}
                module_edges[name] |= {package for package in packages if not f"{name}.".startswith(f"{package}.")}
            if target == unit:
                continue
            unit_edges.setdefault(unit, set()).add(target)
            here, there = FLOORS[unit], FLOORS.get(target, 99)
            if there > here:
                problems.append(f"{where}:{item.line}: {unit} (floor {here}) imports {target} (floor {there}), upwards")
            elif there == here and here in INDEPENDENT_FLOORS:
                problems.append(
                    f"{where}:{item.line}: {unit} imports {target}, and units of floor {here} are independent"
                )
    problems += [f"circle between units: {' -> '.join(circle)}" for circle in _circles(unit_edges)]
    problems += [f"circle between modules: {' -> '.join(circle)}" for circle in _circles(module_edges)]
    return list(dict.fromkeys(problems))


def _ray(name: str, path: Path, found: list[Import]) -> Iterator[tuple[int, str]]:
    allowed = unit_of(name) in RAY_UNITS or path.stem.endswith(("_actor", "_actors"))
    for item in found:
        if item.target.split(".")[0] == "ray" and item.runs_on_import and not allowed:
            yield item.line, "imports ray on import; do it inside the function, or in a module named *_actor.py"


def _forbidden(name: str, tree: ast.Module, found: list[Import]) -> Iterator[tuple[int, str]]:
    for item in found:
        if FORBIDDEN_MODULES & set(item.target.split(".")) and item.target != MAY_PICKLE.get(name):
            yield item.line, f"imports {item.target}: what jaxrl reads is JSON or safetensors"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and FORBIDDEN_MODULES & {a.name for a in node.names}:
            yield node.lineno, f"imports {', '.join(a.name for a in node.names)} from {node.module}"
        if isinstance(node, ast.Name) and node.id in FORBIDDEN_CALLS:
            yield node.lineno, f"uses {node.id}"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            off = isinstance(node.value, ast.Constant) and node.value.value is False
            if not off:
                yield node.value.lineno, "uses allow_pickle"
        if isinstance(node, ast.Attribute) and node.attr in FORBIDDEN_YAML and ast.unparse(node.value) == "yaml":
            yield node.lineno, f"uses yaml.{node.attr}; jaxrl.config.load_yaml reads plain data"
        if isinstance(node, ast.ImportFrom) and node.module == "yaml":
            for alias in node.names:
                if alias.name in FORBIDDEN_YAML:
                    yield node.lineno, f"uses yaml.{alias.name}; jaxrl.config.load_yaml reads plain data"


def _names_and_size(where: Path, text: str) -> Iterator[str]:
    bad = FORBIDDEN_NAMES & {where.stem, *where.parts[:-1]}
    if bad:
        yield f"{where}:1: named {bad.pop()!r}, which says nothing; name it after what it does"
    lines = len(text.splitlines())
    if lines > MAX_LINES:
        yield f"{where}:{lines}: has {lines} lines, more than {MAX_LINES}; split it"


def _circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """One circle for each back edge of a depth-first walk."""
    circles: list[list[str]] = []
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> None:
        if node in path:
            circles.append([*path[path.index(node) :], node])
        elif node not in done:
            for following in sorted(edges.get(node, ())):
                walk(following, [*path, node])
            done.add(node)

    for start in sorted(edges):
        walk(start, [])
    return circles


def read_package(root: Path) -> dict[Path, str]:
    return {path: path.read_text() for path in sorted(root.rglob("*.py"))}


def synthetic(**files: str) -> list[str]:
    """Checks a made-up package: keys are module paths with `__` for `/` (`package`: its __init__)."""
    root = Path("/made-up/jaxrl")
    paths = {name: "__init__" if name == "package" else name.replace("__", "/") for name in files}
    return check({root / f"{paths[name]}.py": text for name, text in files.items()}, root)


def test_the_package_keeps_its_rules():
    problems = check(read_package(PACKAGE), PACKAGE)
    assert not problems, "\n" + "\n".join(problems)


def test_every_module_is_seen():
    names = {module_name(path, PACKAGE) for path in read_package(PACKAGE)}
    assert {"jaxrl", "jaxrl.types", "jaxrl.data", "jaxrl.policies.build"} <= names


@pytest.mark.parametrize(
    "source",
    [
        "from jaxrl.policies import build_policy",
        "import jaxrl.policies.build",
        "def f():\n    from jaxrl.policies import build",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from jaxrl.policies import build",
        "class A:\n    def f(self):\n        import jaxrl.policies",
        "from ..policies import build",
        "try:\n    from jaxrl import policies\nexcept ImportError:\n    pass",
        "from jaxrl.no_such_floor import x",
    ],
)
def test_an_upward_import_is_found_wherever_it_stands(source):
    problems = synthetic(losses__value=source, policies__build="", policies="")
    assert any("losses/value.py" in problem and "upwards" in problem for problem in problems)


def test_downward_imports_and_neighbours_within_a_unit_are_fine():
    assert not synthetic(
        losses__value="import jax\nfrom jaxrl.types import LossFn\nfrom . import returns",
        losses__returns="import chex",
        types="",
        policies__build="def f():\n    from jaxrl.losses.value import x\n    import ray",
        data__columns="from jaxrl.trees import x",
        trees="",
    )


def test_units_of_an_independent_floor_are_kept_apart():
    problems = synthetic(losses__value="from jaxrl.envs import x", envs="")
    assert any("units of floor 2 are independent" in problem for problem in problems)


def test_iterators_sit_below_the_rest_of_execution():
    assert not synthetic(execution__iterators="from jaxrl.trees import x", trees="")
    assert synthetic(execution__iterators="from jaxrl.execution.context import x", execution__context="")
    assert not synthetic(execution__context="from jaxrl.execution.iterators import x", execution__iterators="")


def test_a_circle_through_a_packages_init_is_found():
    circle = {"execution": "from jaxrl.execution.plan import x", "execution__plan": "from jaxrl.rollout import x"}
    files = {"execution__shards": "", "rollout": "from jaxrl.execution.shards import x", **circle}
    assert any("circle between modules" in problem for problem in synthetic(**files))
    assert not synthetic(**{**files, "execution": ""})


def test_circles_are_found():
    between_units = synthetic(config="from jaxrl.registry import x", registry="def f():\n    import jaxrl.config")
    assert any("circle between units" in problem for problem in between_units)
    between_modules = synthetic(losses__a="from jaxrl.losses import b", losses__b="from jaxrl.losses.a import x")
    assert any("circle between modules" in problem for problem in between_modules)
    # Inside one unit, types of a later module may be named for the type checker alone.
    assert not synthetic(
        losses__a="from jaxrl.losses import b", losses__b="if TYPE_CHECKING:\n    from jaxrl.losses import a"
    )


def test_a_module_without_a_floor_is_found():
    assert any("has no floor" in problem for problem in synthetic(somewhere=""))


@pytest.mark.parametrize(
    "source", ["import ray", "from ray import tune", "class A:\n    import ray.util", "if x:\n    import ray"]
)
def test_ray_is_found_outside_its_places(source):
    assert any("imports ray" in problem for problem in synthetic(rollout__worker=source))
    assert not synthetic(rollout__worker_actor=source, trainers__trainer=source, cli__main=source, tune=source)
    assert not synthetic(
        rollout__worker=f"def f():\n    {source.splitlines()[0]}" if source.startswith(("imp", "fro")) else ""
    )


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    import cloudpickle as cp",
        "from ray import cloudpickle",
        "import ray.cloudpickle",
        "from pickle import loads",
        "eval('1')",
        "f = exec",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "import yaml\nload = yaml.unsafe_load",
        "from yaml import load",
    ],
)
def test_ways_to_run_what_a_file_says_are_found(source):
    assert synthetic(cli__main=source)


def test_environments_may_be_sent_to_their_own_processes():
    assert not synthetic(envs__env_process="import cloudpickle")
    assert synthetic(envs__env_process="import pickle")
    assert synthetic(envs__resume="import cloudpickle")


def test_safe_reading_is_fine():
    assert not synthetic(cli__main="import yaml\nyaml.safe_load(text)\nnp.load(p, allow_pickle=False)\nmodel.eval()")


@pytest.mark.parametrize("name", ["losses__utils", "common", "models__helpers__x", "rollout__misc", "base_class"])
def test_names_that_say_nothing_are_found(name):
    assert any("says nothing" in problem for problem in synthetic(**{name: ""}))


def test_long_files_are_found():
    assert any("421 lines" in problem for problem in synthetic(losses__value="x = 1\n" * 421))
    assert not synthetic(losses__value="x = 1\n" * 400)


def test_the_package_init_loads_no_floor():
    assert any(
        "eagerly" in problem for problem in synthetic(package="from jaxrl.policies import build_policy", policies="")
    )
    lazy = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from jaxrl.policies import build_policy"
    assert not synthetic(package=lazy, policies="")
    assert not synthetic(package="from jaxrl.dispatch import x", dispatch="")


def test_importing_the_package_itself_is_found():
    assert any(
        "the package itself" in problem for problem in synthetic(policies__build="from jaxrl import build_policy")
    )
