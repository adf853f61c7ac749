"""The house: each room imports from rooms below it only, wherever in a file it does."""

import ast
from pathlib import Path

import pytest

import agrekd_ray

FOLDER = Path(agrekd_ray.__file__).parent
# From the ground up; what stands in one line knows nothing of its neighbours.
ROOMS = """
errors
settings files streams stops machine
addresses
passwords hub terminal numerics collectives devices plugins
core
results
data
models
training
logits
distillation
teachers
cluster
fleet
student
config
tracking
report
experiment
search
capacity
trained
commands
bench
own api
cli
__main__
""".strip().splitlines()
LEVEL = {room: level for level, line in enumerate(ROOMS) for room in line.split()}


def upward(source: str, room: str) -> list[str]:
    """Modules that a source text of a room imports from its own level or above, but not its own."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "agrekd_ray":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            other = rest.split(".")[0]
            if top == "agrekd_ray" and other in LEVEL and other != room:
                found += [name] if LEVEL[other] >= LEVEL[room] else []
    return found


@pytest.mark.parametrize("room", sorted(LEVEL))
def test_a_room_imports_from_below(room: str) -> None:
    place = FOLDER / room
    paths = list(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    assert paths
    found = {path.name: upward(path.read_text(), room) for path in paths}
    assert {name: modules for name, modules in found.items() if modules} == {}


def test_every_room_has_its_place() -> None:
    rooms = {path.parent.name for path in FOLDER.glob("*/__init__.py")}
    modules = {path.stem for path in FOLDER.glob("*.py")}
    assert rooms | modules - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize(
    "source",
    [
        "from agrekd_ray.search.driver import Search",
        "def f():\n    from agrekd_ray.cli import main",
        "from agrekd_ray import report",
        "import agrekd_ray.experiment.job",
    ],
)
def test_the_check_notices(source: str) -> None:
    assert upward(source, "tracking") != []
