"""Rows of a data set that Ray tasks make, on all nodes that share their folder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from agrekd_ray.cluster.channel import plain_error
from agrekd_ray.cluster.events import Notice
from agrekd_ray.cluster.nodes import cluster_nodes, granted_room, this_node
from agrekd_ray.cluster.placement import Node, ResourceRequest
from agrekd_ray.data import DataSettings, open_dataset
from agrekd_ray.data.chunks import CHUNK
from agrekd_ray.data.dataset import Progress
from agrekd_ray.data.prepared import Chunk, Take
from agrekd_ray.data.prepared_samples import PreparedSamples
from agrekd_ray.data.stamps import Stamps
from agrekd_ray.errors import AgrekdError, DataError
from agrekd_ray.experiment.teacher_tasks import Task, run_tasks
from agrekd_ray.experiment.waiting import says_what_waits
from agrekd_ray.machine import usable_cpus

CPUS = 8
"""Of a task, at most: its process opens the data set once for all its threads."""
AT_A_TIME = 2
"""Chunks that a task makes with each of its CPUs; they are lost with its process."""
FEW = 4
"""Chunks for each of the driver's threads that it makes sooner than tasks would start."""
_NODE = "ray.io/node-id"
Given = tuple[DataSettings, Stamps]
"""Settings of a data set, and what the driver knows of its files."""


def prepare_on_nodes(
    dataset: PreparedSamples,
    settings: DataSettings,
    progress: Progress,
    say: Callable[[str], None],
) -> None:
    """Prepare what is missing on every node that has the sources and shares the folder.

    Where that is one node, or where little is missing, the driver does it in threads. A task whose
    process or node dies is tried again elsewhere; what others have made stays.

    Args:
        dataset: to be prepared.
        settings: of it.
        progress: told after every task.
        say: tells the user.

    Raises:
        BrokenRowsError: see `PreparedRows.fill`.
        DataError: the folder cannot be written.
        RunError: a task's process died over and over.
    """
    rows, nodes = dataset.rows, [node for node in cluster_nodes() if node.total.get("CPU", 0) >= 1]
    given, alone = (settings, dataset.stamps), rows.here(dataset.making)

    def make(missing: Sequence[int], take: Take) -> None:
        with rows.marked() as mark:
            able = _able(nodes, given, rows.place.name, mark, say)
        if len(able) < 2:
            alone(missing, take)
        else:
            say(f"data: {len(able)} nodes prepare them")
            cpus = int(min(CPUS, *(node.total["CPU"] for node in able)))
            span = rows.aligned(AT_A_TIME * cpus)
            where = {_NODE: f"in({','.join(node.id for node in able)})"}
            room = ResourceRequest("the preparation of the data", {"CPU": cpus}, where)
            _in_tasks(given, missing, span, room, take, say)

    few = rows.left() <= FEW * CHUNK * usable_cpus()
    rows.gather(alone if few or len(nodes) < 2 else make, progress)


def _in_tasks(
    given: Given,
    missing: Sequence[int],
    span: int,
    room: ResourceRequest,
    take: Take,
    say: Callable[[str], None],
) -> None:
    """Have tasks make chunks, those of a span each, as many at a time as there is room for."""
    spans: dict[int, list[int]] = defaultdict(list)
    for number in missing:
        spans[number // span].append(number)
    begun = False

    def done(_: int, made: list[Chunk]) -> None:
        nonlocal begun
        begun = True
        for chunk in made:
            take(chunk)

    def emit(event: object) -> None:
        if isinstance(event, Notice):
            say(event.text)

    tasks = {key: Task(room, (given, numbers), room.what) for key, numbers in spans.items()}
    with says_what_waits([room], emit, lambda: not begun):
        run_tasks(_make, tasks, done)


def _make(given: Given, numbers: Sequence[int]) -> list[Chunk]:
    """Make chunks in this process; their rows are on disk when it returns."""
    dataset = _opened(given)
    try:
        return list(dataset.rows.write(dataset.making(numbers), granted_room()))
    except DataError as error:
        raise DataError(f"node {this_node()}: {error}") from None


def _able(
    nodes: Sequence[Node], given: Given, key: str, mark: str, say: Callable[[str], None]
) -> list[Node]:
    """The nodes that can make rows of a data set where the driver does; says why others cannot.

    Args:
        nodes: that are asked.
        given: the data set.
        key: of its rows.
        mark: see `PreparedRows.marked`.
        say: tells the user.
    """
    answers = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        ask = ray.remote(_unable).options(num_cpus=0, scheduling_strategy=there)
        answers[node.name] = ask.remote(given, key, mark)
    able = []
    for node in nodes:
        try:
            why = ray.get(answers[node.name])
        except RayError as error:
            why = str(plain_error(error, "a process there"))
        if why:
            say(f"data: node {node.name} does not prepare them ({why})")
        else:
            able.append(node)
    return able


def _unable(given: Given, key: str, mark: str) -> str:
    """Why this node cannot make rows where the driver does; empty where it can."""
    try:
        dataset = _opened(given)
        if dataset.rows.place.name != key:
            return "its table or files are not the driver's"
        if not dataset.rows.has(mark):
            return "it does not share the folder data.prepared"
        return dataset.missing_source()
    except AgrekdError as error:
        return str(error)


def _opened(given: Given) -> PreparedSamples:
    """The data set in this process, as the driver knows it.

    Raises:
        DataError: it cannot be opened here.
    """
    dataset = open_dataset(*given)
    if not isinstance(dataset, PreparedSamples):
        raise DataError("it is another data set here")
    return dataset
