"""Modules of a user's own, which register strategies, kinds of teachers, metrics, data and so on.

A job names them (`plugins: [mine]`), or a package that is installed has an entry point in the group
`agrekd_ray.plugins`. They are imported in every process of the job; what lies beside the job is
shipped to the nodes of a cluster, by Ray's runtime environment.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from agrekd_ray.errors import AgrekdError

GROUP = "agrekd_ray.plugins"
"""Of entry points."""
_NAMES = "AGREKD_PLUGINS"
"""Variable of the environment that tells a worker's process what to import, as JSON."""
_loaded: dict[str, str] = {}
"""Digests of the code of plugins, by name of the module."""


def located(plugin: Any, folder: Path) -> Any:
    """A plugin as a job names it, with its place where it lies beside the job.

    Args:
        plugin: name of a module; a file, or a package's folder.
        folder: that the job's file is in; the current folder is looked at, too.
    """
    if not isinstance(plugin, str):
        return plugin
    if plugin.endswith(".py") or os.sep in plugin:
        return str(Path(plugin).expanduser().absolute()) if "#" not in plugin else plugin
    for place in (folder.absolute(), Path.cwd()):
        for path in (place / f"{plugin}.py", place / plugin):
            if path.is_file() or (path / "__init__.py").is_file():
                return str(path)
    return plugin


def installed() -> list[str]:
    """Modules that packages which are installed name as plugins."""
    return [point.value.partition(":")[0] for point in entry_points(group=GROUP)]


def load(plugin: str) -> str:
    """Import a plugin, anew where its code has changed since.

    Args:
        plugin: as `located` gives it, or as this function has returned it for an earlier run.

    Returns:
        The plugin with the digest of its code, `PLACE#DIGEST`.

    Raises:
        AgrekdError: it is not there, fails, or is not the earlier run's any more.
    """
    place, expected = _parts(plugin)
    name = _module(place)
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name):
        raise AgrekdError("is no name of a module")
    if name != place and not Path(place).exists():
        raise AgrekdError("is not there")
    if name != place and str(Path(place).parent) not in sys.path:
        sys.path.insert(0, str(Path(place).parent))
    try:
        importlib.invalidate_caches()
        digest = _digest(name) if name != place else ""
        if name in _loaded and digest and digest != _loaded[name]:
            for module in [m for m in sys.modules if f"{m}.".startswith(f"{name}.")]:
                # What is compiled is told apart by its seconds, which may be the same.
                compiled = getattr(sys.modules.pop(module), "__cached__", None)
                if compiled:
                    Path(compiled).unlink(missing_ok=True)
        module_file = importlib.import_module(name).__file__
        digest = digest or _digest(name)
    except Exception as error:  # a user's module may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name == name.partition(".")[0]:
            raise AgrekdError(
                "no such module beside the job, in the current folder or among what is installed"
            ) from None
        said = " ".join(str(error).split())
        raise AgrekdError(f"cannot be imported ({type(error).__name__}: {said})") from error
    if name != place and not Path(str(module_file)).is_relative_to(Path(place)):
        raise AgrekdError(f"another module of that name is imported already, {module_file}")
    if expected not in ("", digest):
        raise AgrekdError(
            "has changed since this run began; put it back as it was, or begin a new run"
        )
    _loaded[name] = digest
    return f"{place}#{digest}"


def code_of(function: Callable[..., Any] | None) -> str:
    """A digest of the code behind a registered function; empty for None, which is ours."""
    if function is None:
        return ""
    if found := _plugin_of(function):
        return _loaded[found]
    try:
        return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()
    except OSError:  # typed into a console
        return ""


def travels(function: Callable[..., Any] | None) -> bool:
    """Whether other processes of a job know a registered function; None is ours."""
    return function is None or _plugin_of(function) is not None


def runtime_env(plugins: Sequence[str]) -> dict[str, Any] | None:
    """Ray's runtime environment that has every process import plugins; None without any.

    Args:
        plugins: as `load` has returned them.
    """
    places = [_parts(plugin)[0] for plugin in plugins]
    if not places:
        return None
    return {
        "py_modules": [place for place in places if _module(place) != place],
        "env_vars": {_NAMES: json.dumps([_module(place) for place in places])},
        "worker_process_setup_hook": f"{__name__}.load_in_worker",
    }


def load_in_worker() -> None:
    """Import the job's plugins, in a process that Ray has started for it."""
    for name in json.loads(os.environ.get(_NAMES, "[]")):
        load(name)


def _parts(plugin: str) -> tuple[str, str]:
    """Place and digest, which may be empty."""
    found = re.fullmatch(r"(.*?)(?:#([0-9a-f]{16}))?", plugin, re.DOTALL)
    assert found is not None
    return found[1], found[2] or ""


def _module(place: str) -> str:
    """Name of the module at a place."""
    if place.endswith(".py") or os.sep in place:
        return Path(place).name.removesuffix(".py")
    return place


def _plugin_of(function: Callable[..., Any]) -> str | None:
    module = f"{function.__module__}."
    return next((name for name in _loaded if module.startswith(f"{name}.")), None)


def _digest(name: str) -> str:
    """Of the code of a module, or of all modules of a package; empty where it has no file."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return ""
    root = Path(spec.origin)
    files = sorted(root.parent.rglob("*.py")) if root.name == "__init__.py" else [root]
    content = hashlib.sha256()
    for file in files:
        content.update(f"{file.relative_to(root.parent)}\0".encode() + file.read_bytes())
    return content.hexdigest()[:16]
