"""`agrekd doctor`: asks every node of a cluster, and says what is wrong and what to do about it."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import itertools
import math
import queue
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import InvalidVersion
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from agrekd_ray.addresses import sqlite_file
from agrekd_ray.capacity import probe
from agrekd_ray.capacity.report import counted, say
from agrekd_ray.capacity.size import Needs, needs_of
from agrekd_ray.cluster.address import cluster_address
from agrekd_ray.cluster.environment import prepare
from agrekd_ray.cluster.placement import Node, check_room, rounds, shares_beside
from agrekd_ray.config import Job, load_job
from agrekd_ray.config.points import points_of
from agrekd_ray.data import open_dataset
from agrekd_ray.errors import RunError, TrackingError
from agrekd_ray.experiment.gpus import check_room_to_begin, numbered, workers_of
from agrekd_ray.experiment.settled import settled

ERROR, WARNING = "error", "warning"
ANSWER_SECONDS, TRACKING_SECONDS = 30.0, 30.0
TORCH_SECONDS = 120.0
"""PyTorch may start slowly, from a disk across the network."""
DATA_SECONDS = 600.0
"""Opening a data set may read large tables."""
TICKS = 5
"""Round trips of which the quickest measures a clock."""
FULL = 0.95
"""Share of a disk beyond which Ray stops writing to it."""
FEW_FILES = 4096
SKEW_SECONDS = 1.0
DRIVER = "driver"
"""The name of the process that asks."""
MAY_DIFFER = {"outputs.store"}
"""Folders that may be each node's own: records travel through Ray where they are not shared."""
_HEAD = "node:__internal_head__"
REMEDIES = {
    "answer": "look at /tmp/ray/session_latest/logs there; `ray stop` and start it again",
    "clock": "let a time service (chrony, systemd-timesyncd) set it",
    "memory": "add nodes, or record with fewer teachers at a time",
    "object store": "start Ray there with a larger --object-store-memory, or lower "
    "student.training.batch_size",
    "open files": "ulimit -n 65536 before `ray start`",
    "ports": "export RAY_AUTH_MODE=token on every node and client before `ray start`, with one "
    "token for all (ray get-auth-token --generate; RAY_AUTH_TOKEN); keep --dashboard-host "
    "127.0.0.1",
    "shared memory": "docker run --shm-size=4g; on Kubernetes an emptyDir with medium: Memory at "
    "/dev/shm",
    "versions": "install the same on every node, best of all from one image (Dockerfile)",
}
"""What to do about a finding, by what was looked at, where that is always the same."""


@dataclass(frozen=True)
class Machine:
    """The driver's machine, or a node of the cluster: what Ray counts, and what it says of itself.

    Attributes:
        name: `driver`, or host and the beginning of Ray's id, for people.
        cpus: logical CPUs that Ray counts.
        gpus: GPUs that Ray counts.
        object_store: bytes of its object store.
        silence: why it did not answer; then nothing more is known of it.
        skew: seconds by which its clock is ahead of the driver's, and how far that may be off; None
            where it was not measured.
        torch_gpus: that PyTorch finds, or why it does not say; None where nobody asked, because
            neither Ray nor the machine knows of a GPU.
        data: what `Probe.data` says of each of the job's data sets.
        data_silence: why it does not; empty where it does, or was not asked.
        versions: by package, `python` and `agrekd_ray` included; or that one is missing.
        code: digest of this package's source text there; empty where it is missing.
        accelerators: whether it has device files of GPUs.
        memory_free: bytes; None where the system does not tell.
        shared_memory: bytes of `/dev/shm`; None where there is none.
        open_files: that a process may have; -1 for no limit.
        temporary: bytes `free` and `total` of the temporary folder's disk, where Ray writes.
        folders: by key of the job, what the probe finds there.
        listeners: addresses by port, of the ports that it was asked for.
        token: whether Ray asks for a token there.
        token_file: where the token is, if other users can read it; else empty.
    """

    name: str
    cpus: float = 0
    gpus: float = 0
    object_store: int = 0
    silence: str = ""
    skew: tuple[float, float] | None = None
    torch_gpus: int | str | None = None
    data: Sequence[Mapping[str, str]] = ()
    data_silence: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    accelerators: bool = False
    memory_free: int | None = None
    shared_memory: int | None = None
    open_files: int = -1
    temporary: Mapping[str, int] = field(default_factory=dict)
    folders: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    listeners: Mapping[int, Sequence[str]] = field(default_factory=dict)
    token: bool = False
    token_file: str = ""

    @property
    def in_words(self) -> str:
        """The machine in a line."""
        room = f"{self.name}: {self.cpus:g} CPUs, {self.gpus:g} GPUs"
        if self.silence:
            return f"{room}; does not answer"
        free = "unknown" if self.memory_free is None else decimal(self.memory_free)
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"{room}, {free} of memory free, {versions}"


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a cluster.

    Attributes:
        node: where; `driver`, `cluster`, or a node's name.
        check: what was looked at.
        problem: what is wrong, with the numbers.
        remedy: what to do; empty for the usual.
        level: `error` where a run would fail or be wrong, `warning` where it may.
    """

    node: str
    check: str
    problem: str
    remedy: str = ""
    level: str = ERROR

    def __post_init__(self) -> None:
        object.__setattr__(self, "remedy", self.remedy or REMEDIES[self.check])


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
    needs = needs_of(points) if points else Needs()
    prepare(starts_cluster=where is None)
    from agrekd_ray.cluster.nodes import cluster_nodes  # imports Ray, which reads the environment
    from agrekd_ray.cluster.session import RaySession

    taken = max((point.student.workers * point.student.cpus for point in points), default=0)
    session = RaySession(where, math.ceil(taken) + 1, lambda text: say(console, text, "yellow"))
    try:
        driver, nodes, ports = _examined(job, points, session.dashboard)
        room = room_faults(points, needs, cluster_nodes())
    finally:
        session.close()
    findings = [*diagnose(driver, nodes, needs, requirements(), ports), *room]
    findings = sorted([*findings, *tracking_faults(job)], key=lambda finding: finding.level)
    for node in nodes:
        say(console, node.in_words)
    if needs.memory:
        memory, disk = decimal(int(needs.memory)), decimal(sum(needs.disk.values()))
        say(console, f"the job: {memory} of memory besides its data, {disk} on disk")
    show_findings(findings, len(nodes), console)
    return not any(finding.level == ERROR for finding in findings)


def show_findings(findings: Sequence[Finding], nodes: int, console: Console) -> None:
    """Print what is wrong with so many nodes: a table on a terminal, plain lines elsewhere."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("Node", "Check", "Finding", "Remedy"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        cells = (finding.node, finding.check, finding.problem, finding.remedy)
        table.add_row(*map(Text, cells), style="red" if finding.level == ERROR else "yellow")
        if not console.is_terminal:
            where = f"{finding.level}: {finding.node}: {finding.check}"
            say(console, f"{where}: {finding.problem}. Remedy: {finding.remedy}.")
    if findings and console.is_terminal:
        console.print(table)
    levels = [finding.level for finding in findings]
    words = ", ".join(counted(levels.count(level), level) for level in (ERROR, WARNING))
    style = "red" if ERROR in levels else "yellow" if levels else "green"
    say(console, f"{counted(nodes, 'node')}: {words if levels else 'nothing is wrong'}", style)


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
    for check in (
        *(functools.partial(check_room_to_begin, point, nodes) for point in points),
        *(functools.partial(_check_teachers, *hosting, nodes) for hosting in needs.hosting),
    ):
        try:
            check()
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

    uri, faults = job.tracking.uri, queue.Queue[str]()
    if (path := sqlite_file(uri)) is not None and not path.exists():
        return []

    def look() -> None:
        try:
            with unless_set({"MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}):
                open_existing(uri)
            faults.put("")
        except TrackingError as error:
            faults.put(str(error))

    threading.Thread(target=look, daemon=True).start()  # a database's driver may wait for ever
    try:
        fault = faults.get(timeout=TRACKING_SECONDS)
    except queue.Empty:
        fault = f"{without_password(uri)} does not answer within {TRACKING_SECONDS:.0f} s"
    problem, _, remedy = fault.partition("\n")
    remedy = remedy or "set tracking.uri to a store that answers"
    return [Finding(DRIVER, "MLflow", problem, remedy)] if fault else []


# --- the driver's machine and every node are asked


def _examined(
    job: Job | None, points: Sequence[Job], dashboard: str
) -> tuple[Machine, list[Machine], dict[int, str]]:
    """The driver, every node of the cluster that is joined, and the head node's ports by number.

    Args:
        job: the job; None for the cluster alone.
        points: of the job.
        dashboard: its address; empty where there is none.
    """
    import ray

    data = {point.data.model_dump_json(): open_dataset(point.data).fingerprint for point in points}
    folders: dict[str, Path] = {}
    if job is not None:
        folders = {"runs": job.runs, "teachers.store": job.teachers.store}
        folders["outputs.store"] = job.outputs.store
    listening = {"Ray's control service (GCS)": ray.get_runtime_context().gcs_address}
    if dashboard:
        listening["the dashboard"] = dashboard
    ports = {int(at.rpartition(":")[2]): name for name, at in listening.items()}
    with _marked(folders) as marked:
        answer = probe.Probe().examine(marked, [])
        nodes = _ask_nodes(marked, sorted(ports), list(data))
    fingerprints = [{"fingerprint": fingerprint} for fingerprint in data.values()]
    return Machine(DRIVER, data=fingerprints, **answer), nodes, ports


@contextlib.contextmanager
def _marked(folders: Mapping[str, Path]) -> Iterator[dict[str, tuple[str, str]]]:
    """While the block runs, a small file lies in every folder, or in its nearest parent there.

    Yields:
        By key, the folder and the name of the file. Where it could not be written, the driver's own
        answer says so.
    """
    name = f".agrekd-doctor-{uuid.uuid4().hex}"
    places = {
        next(place for place in (folder, *folder.parents) if place.is_dir())
        for folder in folders.values()
    }
    try:
        for place in places:
            with contextlib.suppress(OSError):
                (place / name).touch(exist_ok=False)
        yield {key: (str(folder), name) for key, folder in folders.items()}
    finally:
        for place in places:
            with contextlib.suppress(OSError):
                (place / name).unlink()


def _ask_nodes(
    folders: Mapping[str, tuple[str, str]], ports: Sequence[int], data: Sequence[str]
) -> list[Machine]:
    """What every node says.

    Args:
        folders: as `Probe.examine` has them.
        ports: of the head node, which alone has them.
        data: settings of the job's data sets, as JSON.
    """
    import ray
    from ray.cloudpickle import register_pickle_by_value, unregister_pickle_by_value
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [node for node in ray.nodes() if node["Alive"]]
    register_pickle_by_value(probe)  # so that nodes without this package answer, too
    actors: dict[int, Any] = {}
    try:
        # No CPU and no GPU of their own: a cluster that is all taken answers, too.
        shell = ray.remote(num_cpus=0, max_restarts=0)(probe.Probe)
        for number, node in enumerate(alive):
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            actors[number] = shell.options(scheduling_strategy=here).remote()
        nodes = []
        answers = _ask(actors, ANSWER_SECONDS, "examine", folders, ports)
        for node, (answer, silence) in zip(alive, answers.values(), strict=True):
            resources = node["Resources"]
            elsewhere: dict[str, Any] = {} if _HEAD in resources else {"listeners": {}}
            nodes.append(
                Machine(
                    name=f"{node['NodeManagerHostname']} {node['NodeID'][:6]}",
                    cpus=resources.get("CPU", 0),
                    gpus=resources.get("GPU", 0),
                    object_store=int(resources.get("object_store_memory", 0)),
                    silence=silence,
                    **{**(answer or {}), **elsewhere},
                )
            )
        talking = {n: actor for n, actor in actors.items() if not nodes[n].silence}
        for number, actor in talking.items():
            nodes[number] = replace(nodes[number], skew=_skew(actor))
        with_gpus = {n: a for n, a in talking.items() if nodes[n].gpus or nodes[n].accelerators}
        for number, (count, silence) in _ask(with_gpus, TORCH_SECONDS, "torch_gpus").items():
            nodes[number] = replace(nodes[number], torch_gpus=silence or count)
        for number, (answer, silence) in _ask(
            talking if data else {}, DATA_SECONDS, "data", data
        ).items():
            nodes[number] = replace(nodes[number], data=answer or (), data_silence=silence)
        return nodes
    finally:
        for actor in actors.values():
            ray.kill(actor)
        unregister_pickle_by_value(probe)


def _skew(actor: Any) -> tuple[float, float] | None:
    """A node's clock against this one, by halving the quickest round trip."""
    trips = []
    for _ in range(TICKS):
        sent = time.time()
        clock, silence = _ask({0: actor}, ANSWER_SECONDS, "clock")[0]
        back = time.time()
        if not silence:
            trips.append((back - sent, clock - (sent + back) / 2))
    if not trips:
        return None
    trip, skew = min(trips)
    return skew, trip / 2


def _ask(
    actors: Mapping[int, Any], seconds: float, method: str, *arguments: object
) -> dict[int, tuple[Any, str]]:
    """What actors answer in time and an empty text, or None and why there is none; by number."""
    import ray
    from ray.exceptions import RayError

    asked = {n: getattr(actor, method).remote(*arguments) for n, actor in actors.items()}
    references = list(asked.values())
    ready: list[Any] = []
    if references:
        ready, _ = ray.wait(references, num_returns=len(references), timeout=seconds)
    answers: dict[int, tuple[Any, str]] = {}
    for number, reference in asked.items():
        if reference not in ready:
            answers[number] = None, f"no answer within {seconds:.0f} s"
            continue
        try:
            answers[number] = ray.get(reference), ""
        except RayError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            answers[number] = None, lines[-1].strip() if lines else type(error).__name__
    return answers


# --- from facts to findings


def diagnose(
    driver: Machine,
    nodes: Sequence[Machine],
    needs: Needs,
    requirements: Sequence[str],
    ports: Mapping[int, str],
) -> list[Finding]:
    """All findings, errors first.

    Args:
        driver: the machine of the driver.
        nodes: those that Ray counts as alive.
        needs: of the job.
        requirements: of this package, as its metadata has them (`torch<3,>=2.6`).
        ports: of the head node, with what listens there.
    """
    findings = [
        *_of_driver(driver, needs, requirements),
        *_of_cluster(nodes, needs),
        *itertools.chain(*(_of_node(node, driver, needs, ports) for node in nodes)),
    ]
    return sorted(findings, key=lambda finding: finding.level)


def _of_driver(driver: Machine, needs: Needs, requirements: Sequence[str]) -> Iterable[Finding]:
    """What is wrong with the driver's machine."""
    for wanted in map(Requirement, requirements):
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue  # which only an extra takes
        version = driver.versions.get(wanted.name)
        if version is not None and not _within(version, wanted):
            yield Finding(DRIVER, "versions", f"{wanted.name} {version}, not {wanted.specifier}")
    by_disk: dict[int, list[str]] = {}
    for key, folder in driver.folders.items():
        if problem := _unwritable(folder):
            remedy = f"set {key} to a folder that can be written"
            yield Finding(DRIVER, "folders", f"{key}: {problem}", remedy)
        if "device" in folder:
            by_disk.setdefault(folder["device"], []).append(key)
    for keys in by_disk.values():
        sizes = {key: needs.disk.get(key, 0) for key in keys}
        total, free = sum(sizes.values()), driver.folders[keys[0]]["free"]
        if total > free:
            parts = ", ".join(f"{key} {decimal(size)}" for key, size in sizes.items())
            problem = f"{decimal(total)} will be written ({parts}), {decimal(free)} are free"
            remedy = "free the disk, name another folder, prune (agrekd outputs prune), or set "
            remedy += "outputs.dtype=float16 or data.views.count"
            yield Finding(DRIVER, "disk", problem, remedy)


def _within(version: str, wanted: Requirement) -> bool:
    try:
        return wanted.specifier.contains(version, prereleases=True)
    except InvalidVersion:
        return False


def _of_cluster(nodes: Sequence[Machine], needs: Needs) -> Iterable[Finding]:
    """GPUs that the job declines, and too little memory for its largest process, or for all."""
    if (count := sum(node.gpus for node in nodes)) and needs.declined:
        keys = ", ".join(needs.declined)
        problem = f"Ray counts {count:g}, and the job declines them: {keys} = 0"
        remedy = "leave the keys out, or set them to auto"
        yield Finding("cluster", "GPUs", problem, remedy, WARNING)
    free = {node.name: node.memory_free for node in nodes if node.memory_free is not None}
    name, most = max(free.items(), key=lambda item: item[1], default=("", math.inf))
    total = sum(free.values())
    if needs.process > most:
        problem = f"the job's largest process takes about {decimal(int(needs.process))}, the node "
        problem += f"with most memory free ({name}) has {decimal(int(most))}"
        remedy = "lower fleet.backbones_per_actor, or take nodes with more memory"
        yield Finding("cluster", "memory", problem, remedy)
    elif free and needs.memory > total:
        problem = f"teachers and students take about {decimal(int(needs.memory))}, free are "
        problem += f"{decimal(total)} on all nodes together ({len(free)})"
        yield Finding("cluster", "memory", problem)


def _of_node(
    node: Machine, driver: Machine, needs: Needs, ports: Mapping[int, str]
) -> Iterable[Finding]:
    """What is wrong with a node, by itself or beside the driver."""
    finding = functools.partial(Finding, node.name)
    if node.silence:
        problem = f"Ray counts it as alive, but it runs no task ({node.silence})"
        yield finding("answer", problem)
        return
    for name, version in node.versions.items():
        if version != (here := driver.versions.get(name)):
            yield finding("versions", f"{name} {version}, the driver has {here}")
    same = node.versions.get("agrekd_ray") == driver.versions.get("agrekd_ray")
    if same and node.code != driver.code:
        yield finding("versions", "other code of agrekd_ray under the same version")
    yield from _of_gpus(node)
    store = decimal(node.object_store)
    if node.object_store < needs.object_store:
        coming = decimal(int(needs.object_store))
        yield finding("object store", f"{store}, the job has {coming} on its way at once")
    if node.shared_memory is not None and node.shared_memory < node.object_store:
        problem = f"/dev/shm has {decimal(node.shared_memory)}, the object store wants {store}"
        yield finding("shared memory", f"{problem}, so it lives on disk, slowly", level=WARNING)
    if 0 <= node.open_files < FEW_FILES:  # -1 is no limit
        yield finding("open files", f"a process may have {node.open_files}", level=WARNING)
    total, free = node.temporary["total"], node.temporary["free"]
    if free < (1 - FULL) * total:
        problem = f"the disk of the temporary folder is full: {decimal(free)} of {decimal(total)} "
        problem += f"are left, and Ray stops at {1 - FULL:.0%}"
        remedy = "free it, or start Ray there with --temp-dir on another disk"
        yield finding("disk", problem, remedy)
    for key, ours in driver.folders.items():
        if _unwritable(ours):
            continue  # which is the driver's finding
        folder = node.folders[key]
        if key in MAY_DIFFER or folder.get("marked", "error" in folder):
            problem = _unwritable({**folder, "marked": True})
            remedy = "let the user that Ray runs as write there, on every node"
        else:
            problem = f"{folder['there']} is not the driver's"
            remedy = f"mount the same storage there, or set {key} to a folder that is shared"
        if problem:
            yield finding("folders", f"{key}: {problem}", remedy)
    if node.data_silence:
        remedy = "look whether the storage of the data answers there"
        yield finding("data", node.data_silence, remedy)
    for mine, other in zip(driver.data, node.data, strict=False):
        if error := other.get("error"):
            remedy = "put the data at the same path as on the driver, readable for Ray's user"
            yield finding("data", f"cannot be opened ({error})", remedy)
        elif other != mine:
            prints = f"{other['fingerprint'][:12]} instead of {mine['fingerprint'][:12]}"
            remedy = "copy them there again, or share one folder"
            yield finding("data", f"other data than the driver's ({prints})", remedy)
    if node.skew is not None and abs(node.skew[0]) - node.skew[1] > SKEW_SECONDS:
        ahead = "ahead of" if node.skew[0] > 0 else "behind"
        problem = f"{abs(node.skew[0]):.1f} s {ahead} the driver's"
        yield finding("clock", problem, level=WARNING)
    for port, addresses in node.listeners.items():
        if not (node.token or all(ipaddress.ip_address(one).is_loopback for one in addresses)):
            problem = f"{ports.get(port, 'Ray')} listens at {', '.join(sorted(set(addresses)))}, "
            problem += f"port {port}, without a token: whoever reaches it can run anything there"
            yield finding("ports", problem, level=WARNING)
    if node.token_file:
        problem = f"{node.token_file} can be read by other users, who can then run anything"
        remedy = f"chmod 600 {node.token_file} (Ray makes it so from 2.60.1 on)"
        yield finding("token", problem, remedy, WARNING)


def _of_gpus(node: Machine) -> Iterable[Finding]:
    """What is wrong where PyTorch does not find the GPUs that Ray counts."""
    count, finding = node.torch_gpus, functools.partial(Finding, node.name, "GPUs")
    if isinstance(count, str):
        remedy = 'try there: python -c "import torch; print(torch.cuda.device_count())"'
        yield finding(f"PyTorch does not say how many it finds ({count})", remedy)
    elif count is not None and count > node.gpus:
        problem = f"PyTorch finds {count}, Ray counts {node.gpus:g}; the others stay idle"
        yield finding(problem, f"start Ray there with --num-gpus={count}", WARNING)
    elif count is not None and count < node.gpus:
        remedy = "install a PyTorch with CUDA and the driver that it needs (image VARIANT=-gpu), "
        remedy += "or start Ray there with --num-gpus as many as there are"
        yield finding(f"Ray counts {node.gpus:g}, PyTorch finds {count}", remedy)


def _unwritable(folder: Mapping[str, Any]) -> str:
    """Why nothing can be written to a folder, as `Probe` found it; empty where it can."""
    if error := folder.get("error"):
        return f"cannot be reached ({error})"
    if not folder["writable"]:
        return f"{folder['there']} cannot be written"
    return "" if folder["marked"] else "no file can be made there; its disk may be full"
