"""`core/` imports torch, the standard library and itself; nothing else."""

import ast
import sys
from pathlib import Path

import pytest

import agrekd_ray.core

FOLDER = Path(agrekd_ray.core.__file__).parent
FILES = sorted(FOLDER.rglob("*.py"))
# Part of the standard library, but not of a pure function.
IMPURE = {"io", "os", "pathlib", "random", "secrets", "shutil", "socket", "subprocess", "tempfile"}


def imported(source: str, package: str = "agrekd_ray.core") -> set[str]:
    """Full names of the modules that a source text imports, wherever it does."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            prefix = ".".join(base) if node.level else ""
            names.add(".".join(filter(None, [prefix, node.module])))
    return names


def allowed(name: str) -> bool:
    top = name.split(".")[0]
    if top == "agrekd_ray":
        return name == "agrekd_ray.core" or name.startswith("agrekd_ray.core.")
    return top == "torch" or (top in sys.stdlib_module_names and top not in IMPURE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_imports_are_pure(path):
    assert [name for name in imported(path.read_text()) if not allowed(name)] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_is_opened_or_drawn(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    names = {ast.unparse(call.func) for call in calls}
    assert names.isdisjoint({"open", "torch.save", "torch.load", "torch.manual_seed"})
    draws = [c for c in calls if ast.unparse(c.func) in {"torch.rand", "torch.randn"}]
    assert draws == []


def test_the_files_were_found():
    assert {"__init__.py", "kd.py", "weighting.py", "groups.py"} <= {path.name for path in FILES}


@pytest.mark.parametrize(
    "source",
    [
        "import ray",
        "import ray.train as t",
        "from mlflow import log_metric",
        "def f():\n    import numpy",
        "from agrekd_ray.results import Metrics",
        "from agrekd_ray import results",
        "from .. import results",
        "from ..models import build",
        "import pathlib",
    ],
)
def test_the_check_notices(source):
    assert [name for name in imported(source) if not allowed(name)] != []


@pytest.mark.parametrize(
    "source", ["import math", "from torch.nn import functional", "from . import kd"]
)
def test_the_check_allows(source):
    assert [name for name in imported(source) if not allowed(name)] == []
