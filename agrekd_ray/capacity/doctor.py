"""`agrekd doctor`: asks every node of a cluster, and says what is wrong and what to do about it."""

from __future__ import annotations

import contextlib
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal

from agrekd_ray import machine
from agrekd_ray.addresses import sqlite_file
from agrekd_ray.capacity import probe
from agrekd_ray.capacity.findings import (
    DRIVER,
    ERROR,
    Finding,
    Machine,
    diagnose,
    of_network,
    show_findings,
)
from agrekd_ray.capacity.needs import Needs, needs_of
from agrekd_ray.capacity.network import Network, Place, measure_network
from agrekd_ray.cluster.address import cluster_address
from agrekd_ray.cluster.environment import prepare
from agrekd_ray.cluster.placement import Node, check_room, rounds, shares_beside
from agrekd_ray.config import Job, load_job
from agrekd_ray.config.points import points_of
from agrekd_ray.data import open_dataset
from agrekd_ray.errors import RunError, TrackingError
from agrekd_ray.experiment.gpus import check_room_to_begin, cpus_of_workers, numbered, workers_of
from agrekd_ray.experiment.settled import settled
from agrekd_ray.terminal import say

ANSWER_SECONDS, TRACKING_SECONDS = 30.0, 30.0
TORCH_SECONDS = 120.0
"""PyTorch may start slowly, from a disk across the network."""
DATA_SECONDS = 600.0
"""Opening a data set may read large tables."""
TICKS = 5
"""Round trips of which the quickest measures a clock."""
_HEAD = "node:__internal_head__"
_Asked = tuple[Any, dict[str, Any]]
"""The probe's actor on a node, and what is known of the node: attributes of `Machine`."""


def doctor(
    path: Path | None, overrides: Sequence[str], address: str | None, console: Console
) -> bool:
    """Look whether a job will run on a cluster, and say what is in its way.

    Args:
        path: of the job; None looks at the cluster alone.
        overrides: `key.path=value` changes to it.
        address: of the cluster; None takes the job's, and without one this machine alone.
        console: to print on.

    Returns:
        Whether no error was found.

    Raises:
        JobError: the job itself is faulty.
        RunError: no cluster answers at the address.
    """
    job = load_job(path, overrides) if path is not None else None
    where = job.ray.address if job is not None else None
    if address is not None:
        try:
            where = cluster_address(address)
        except ValueError as error:
            raise RunError(f"--address = {address}: {error}.") from None
    points: list[Job] = []
    if job is not None:
        at_address = job.ray.model_copy(update={"address": where})
        job = settled(job.model_copy(update={"ray": at_address}))
        points = [point for _, point in points_of(job)]
    needs = needs_of(points)
    prepare(starts_cluster=where is None)
    from agrekd_ray.cluster.nodes import cluster_nodes  # imports Ray, which reads the environment
    from agrekd_ray.cluster.session import RaySession

    taken = max(map(cpus_of_workers, points), default=0)
    warn = partial(say, console, style="yellow")
    plugins = points[0].plugins if points else ()
    with contextlib.closing(RaySession(where, math.ceil(taken) + 1, warn, plugins)) as session:
        driver, nodes, ports, network = _examined(points, session.dashboard)
        room = room_faults(points, needs, cluster_nodes())
    findings = diagnose(driver, nodes, needs, requirements(), ports)
    findings += [*of_network(network, needs), *room, *tracking_faults(job)]
    findings.sort(key=lambda one: one.level)
    for node in nodes:
        say(console, node.in_words)
    if network is not None and network.in_words:
        say(console, network.in_words)
    if needs.memory:
        memory, disk = decimal(int(needs.memory)), decimal(sum(needs.disk.values()))
        say(console, f"the job: {memory} of memory besides its data, {disk} on disk")
    show_findings(findings, len(nodes), console)
    return not any(finding.level == ERROR for finding in findings)


def requirements() -> list[str]:
    """What this package requires, Python included; empty where it runs without being installed."""
    try:
        python = metadata("agrekd_ray")["Requires-Python"]
        return [f"python{python}", *(requires("agrekd_ray") or ())]
    except PackageNotFoundError:
        return []


def room_faults(points: Sequence[Job], needs: Needs, nodes: Sequence[Node]) -> list[Finding]:
    """What a run would refuse for want of room, in its words, each once.

    Args:
        points: of the job.
        needs: of it.
        nodes: of the cluster.
    """
    refused: dict[str, None] = {}
    checks = [partial(check_room_to_begin, point) for point in points]
    for check in (*checks, *(partial(_check_teachers, *hosting) for hosting in needs.hosting)):
        try:
            check(nodes)
        except RunError as error:
            refused[str(error)] = None
    texts = (text.removesuffix(".").rpartition(". ") for text in refused)
    return [Finding("cluster", "room", problem, remedy) for problem, _, remedy in texts]


def _check_teachers(job: Job, backbones: Mapping[str, str], nodes: Sequence[Node]) -> None:
    """Refuse teachers without room: live ones beside a student, others in turns before it."""
    job = numbered(job)
    students = workers_of(job.student) if job.guidance == "live" else []
    teachers = [own.wanted for own in shares_beside(students, nodes, backbones, job.fleet)]
    if job.guidance == "live":
        check_room(students, teachers, nodes)
    else:
        rounds(teachers, nodes)


def tracking_faults(job: Job | None) -> list[Finding]:
    """What is wrong with the job's MLflow store; a file that is made by the first run is fine."""
    if job is None or job.tracking.uri is None:
        return []
    from agrekd_ray.passwords import without_password
    from agrekd_ray.tracking.mlflow_store import open_existing, unless_set

    uri, looked = job.tracking.uri, list[str]()
    if (path := sqlite_file(uri)) is not None and not path.exists():
        return []

    def look() -> None:
        try:
            with unless_set({"MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}):
                open_existing(uri)
            looked.append("")
        except TrackingError as error:
            looked.append(str(error))

    thread = threading.Thread(target=look, daemon=True)  # a database's driver may wait for ever
    thread.start()
    thread.join(TRACKING_SECONDS)
    silence = f"{without_password(uri)} does not answer within {TRACKING_SECONDS:.0f} s"
    problem, _, remedy = (looked or [silence])[0].partition("\n")
    remedy = remedy or "set tracking.uri to a store that answers"
    return [Finding(DRIVER, "MLflow", problem, remedy)] if problem else []


# --- the driver's machine and every node are asked


def _examined(
    points: Sequence[Job], dashboard: str
) -> tuple[Machine, list[Machine], dict[int, str], Network | None]:
    """The driver, the nodes of the cluster that is joined, the head node's ports, the network.

    Args:
        points: of the job, which share their folders; none for the cluster alone.
        dashboard: its address; empty where there is none.
    """
    import ray

    data = {point.data.model_dump_json(): open_dataset(point.data).fingerprint for point in points}
    folders: dict[str, Path] = {}
    for job in points:
        folders = {"runs": job.runs, "teachers.store": job.teachers.store}
        folders["outputs.store"] = job.outputs.store
    listening = {"Ray's control service (GCS)": ray.get_runtime_context().gcs_address}
    if dashboard:
        listening["the dashboard"] = dashboard
    ports = {int(at.rpartition(":")[2]): name for name, at in listening.items()}
    remotes = {job.outputs.remote: str(job.outputs.store) for job in points if job.outputs.remote}
    with _marked(folders) as marked:
        answer = probe.Probe().examine(marked, [])
        nodes, network = _ask_nodes(marked, sorted(ports), list(data), remotes)
    answer["data"] = [{"fingerprint": fingerprint} for fingerprint in data.values()]
    answer["remote"] = [probe.Probe().bucket(*remote) for remote in remotes.items()]
    return Machine(DRIVER, **answer), nodes, ports, network


@contextlib.contextmanager
def _marked(folders: Mapping[str, Path]) -> Iterator[dict[str, tuple[str, str]]]:
    """While the block runs, a small file lies in every folder, or in its nearest parent there.

    Yields:
        By key, the folder and the name of the file. Where it could not be written, the driver's own
        answer says so.
    """
    marked = {}
    with contextlib.ExitStack() as marks:
        for key, folder in folders.items():
            place = next(place for place in (folder, *folder.parents) if place.is_dir())
            name = f".agrekd-doctor-{key}"
            with contextlib.suppress(OSError):
                file = marks.enter_context(tempfile.NamedTemporaryFile(dir=place, prefix=name))
                name = Path(file.name).name
            marked[key] = (str(folder), name)
        yield marked


def _ask_nodes(
    folders: Mapping[str, tuple[str, str]],
    ports: Sequence[int],
    data: Sequence[str],
    remotes: Mapping[str, str],
) -> tuple[list[Machine], Network | None]:
    """What every node says, and all together.

    Args:
        folders: as `Probe.examine` has them.
        ports: of the head node, which alone has them.
        data: settings of the job's data sets, as JSON.
        remotes: addresses of object stores, with the folder of the node that goes with each.
    """
    import ray
    from ray.cloudpickle import register_pickle_by_value, unregister_pickle_by_value
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from agrekd_ray.cluster.nodes import cluster_nodes

    nodes: list[_Asked] = []
    starts: dict[str, tuple[str, Callable[..., Any]]] = {}
    travelling = (probe, machine)  # so that nodes without this package answer, too
    for module in travelling:
        register_pickle_by_value(module)
    try:
        # No CPU and no GPU of their own: a cluster that is all taken answers, too.
        shell = ray.remote(num_cpus=0, max_restarts=0)(probe.Probe)
        for node in filter(lambda node: node["Alive"], ray.nodes()):
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            counts = node["Resources"]
            about = {
                "name": f"{node['NodeManagerHostname']} {node['NodeID'][:6]}",
                "cpus": counts.get("CPU", 0),
                "gpus": counts.get("GPU", 0),
                "object_store": int(counts.get("object_store_memory", 0)),
                "head": _HEAD in counts,
            }
            starts[about["name"]] = node["NodeID"], partial(shell.options, scheduling_strategy=here)
            nodes.append((shell.options(scheduling_strategy=here).remote(), about))
        for about, answer, silence in _ask(nodes, ANSWER_SECONDS, "examine", folders, ports):
            about.update(answer or {"silence": silence})
            if not about.pop("head"):
                about.pop("listeners", None)
        talking = [one for one in nodes if "silence" not in one[1]]
        for one in talking:
            one[1]["skew"] = _skew(one)
        with_gpus = [one for one in talking if one[1]["gpus"] or one[1]["accelerators"]]
        for about, count, silence in _ask(with_gpus, TORCH_SECONDS, "torch_gpus"):
            about["torch_gpus"] = silence or count
        for about, answer, silence in _ask(talking if data else [], DATA_SECONDS, "data", data):
            about["data"] = answer or [{"silence": silence}]
        for remote in remotes.items():
            for about, said, silence in _ask(talking, ANSWER_SECONDS, "bucket", *remote):
                about.setdefault("remote", []).append(said if said is not None else silence)
        free = {node.id: node.free.get("GPU", 0.0) for node in cluster_nodes()}
        places = [_place(about, *starts[about["name"]], free) for _, about in talking]
        return [Machine(**about) for _, about in nodes], measure_network(places)
    finally:
        for actor, _ in nodes:
            ray.kill(actor)
        for module in travelling:
            unregister_pickle_by_value(module)


def _place(
    about: Mapping[str, Any], node: str, options: Callable[..., Any], free: Mapping[str, float]
) -> Place:
    """A node as one whose processes sum.

    Args:
        about: what is known of it.
        node: its id.
        options: of a probe there.
        free: GPUs that Ray has free, by a node's id.
    """
    found = about.get("torch_gpus", 0)
    gpus = min(found if isinstance(found, int) else 0, int(free.get(node, 0)))
    return Place(about["name"], gpus, lambda count: options(num_gpus=count).remote())


def _skew(asked: _Asked) -> tuple[float, float] | None:
    """A node's clock against this one, by halving the quickest round trip."""
    trips = []
    for _ in range(TICKS):
        sent = time.time()
        ((_, clock, _),) = _ask([asked], ANSWER_SECONDS, "clock")
        back = time.time()
        if clock is not None:
            trips.append(((back - sent) / 2, clock - (sent + back) / 2))
    if not trips:
        return None
    half, skew = min(trips)
    return skew, half


def _ask(
    nodes: Iterable[_Asked], seconds: float, method: str, *arguments: object
) -> Iterator[tuple[dict[str, Any], Any, str]]:
    """Facts of each node, and what it answers in time; or None, and why there is no answer."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    asked = [(about, getattr(actor, method).remote(*arguments)) for actor, about in nodes]
    until = time.monotonic() + seconds
    for about, reference in asked:
        try:
            answer, silence = ray.get(reference, timeout=max(0, until - time.monotonic())), ""
        except GetTimeoutError:
            answer, silence = None, f"no answer within {seconds:.0f} s"
        except RayError as error:
            last = str(error).strip().rpartition("\n")[2].strip()
            answer, silence = None, last or type(error).__name__
        yield about, answer, silence
