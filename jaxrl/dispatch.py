"""Makes JAX's CPU backend dispatch synchronously, from the import of jaxrl on, without importing JAX for it.

An acting call costs 26 us instead of 80 where its results are computed in the calling thread. The switch belongs to the
process and JAX reads it once, when it makes its backends: so it is set as JAX is imported, or at once where that has
happened.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_SWITCH = "jax_cpu_enable_async_dispatch"


def dispatch_synchronously() -> None:
    """Switches asynchronous dispatch off, now or when JAX is imported, unless `JAXRL_ASYNC_DISPATCH=1`.

    Warns, once per process, where JAX has made its backends already and it is too late.
    """
    if os.environ.get("JAXRL_ASYNC_DISPATCH") == "1":
        return
    jax = sys.modules.get("jax")
    if jax is None:
        # Importing JAX takes a second, which `jaxrl --help` and a mere `import jaxrl` should not cost.
        sys.meta_path.insert(0, _JaxFinder())
    elif backends_exist(jax.config) and jax.config.read(_SWITCH):
        warnings.warn(
            "JAX ran an operation before jaxrl was imported, so its CPU backend stays asynchronous: each call of a "
            "policy takes about 50 us longer. Import jaxrl before the first JAX operation "
            "(JAXRL_ASYNC_DISPATCH=1 silences this)",
            RuntimeWarning,
            stacklevel=3,
        )
    else:
        jax.config.update(_SWITCH, False)


def backends_exist(config: Any) -> bool:
    """Whether JAX has made its backends, asked in public terms: after that, the number of CPU devices is fixed."""
    devices = config.jax_num_cpu_devices
    try:
        config.update("jax_num_cpu_devices", 1 if devices != 1 else 2)
    except RuntimeError:
        return True
    config.update("jax_num_cpu_devices", devices)
    return False


class _JaxFinder(MetaPathFinder):
    """Finds JAX as the other finders do, and sees to it that the switch is set at the end of its import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "jax":
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _JaxLoader(spec.loader, self)
                return spec
        return None


class _JaxLoader(Loader):
    def __init__(self, loader: Loader, finder: _JaxFinder) -> None:
        self._loader = loader
        self._finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # From here on the module is what it would have been: inspect and importlib.resources ask it for its loader.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        sys.meta_path.remove(self._finder)
        module.config.update(_SWITCH, False)
