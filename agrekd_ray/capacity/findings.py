"""What is wrong with a cluster: from what its machines say to findings. No Ray here."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from packaging.requirements import Requirement
from packaging.version import InvalidVersion
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from agrekd_ray.capacity.needs import Needs
from agrekd_ray.capacity.network import Network
from agrekd_ray.terminal import counted, say

ERROR, WARNING = "error", "warning"
DRIVER = "driver"
"""The name of the process that asks."""
FULL = 0.95
"""Share of a disk beyond which Ray stops writing to it."""
FEW_FILES = 4096
SKEW_SECONDS = 1.0
MAY_DIFFER = {"outputs.store"}
"""Folders that may be each node's own: records travel through Ray where they are not shared."""
WARNINGS = {"shared memory", "open files", "clock", "ports", "token"}
"""Checks whose findings a run may do well with all the same."""
REMEDIES = {
    "answer": "look at /tmp/ray/session_latest/logs there; `ray stop` and start it again",
    "clock": "let a time service (chrony, systemd-timesyncd) set it",
    "memory": "add nodes, or record with fewer teachers at a time",
    "network": "open all ports between the nodes, and name there the interface that joins them "
    "(GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME)",
    "object store": "start Ray there with a larger --object-store-memory, or lower "
    "student.training.batch_size",
    "open files": "ulimit -n 65536 before `ray start`",
    "outputs.remote": "correct the address, or give the machine credentials (AWS_ACCESS_KEY_ID and "
    "the like) that may read and write there",
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
        data: what `Probe.data` says of each of the job's data sets; or `silence`, why it does not.
        remote: what `Probe.bucket` says of each of the job's object stores.
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
    remote: Sequence[str] = ()
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
        remedy: what to do.
        level: `error` where a run would fail or be wrong, `warning` where it may.
    """

    node: str
    check: str
    problem: str
    remedy: str
    level: str = ERROR


def show_findings(findings: Sequence[Finding], nodes: int, console: Console) -> None:
    """Print what is wrong with so many nodes: a table on a terminal, plain lines elsewhere."""
    table = Table("Node", "Check", "Finding", "Remedy", box=SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    for one in findings:
        cells = (one.node, one.check, one.problem, one.remedy)
        table.add_row(*map(Text, cells), style="red" if one.level == ERROR else "yellow")
        if not console.is_terminal:
            where = f"{one.level}: {one.node}: {one.check}"
            say(console, f"{where}: {one.problem}. Remedy: {one.remedy}.")
    if findings and console.is_terminal:
        console.print(table)
    levels = [one.level for one in findings]
    words = ", ".join(counted(levels.count(level), level) for level in (ERROR, WARNING))
    style = "red" if ERROR in levels else "yellow" if levels else "green"
    say(console, f"{counted(nodes, 'node')}: {words if levels else 'nothing is wrong'}", style)


def diagnose(
    driver: Machine,
    nodes: Sequence[Machine],
    needs: Needs,
    requirements: Iterable[str],
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
    findings = [*_of_driver(driver, needs, requirements), *_of_cluster(nodes, needs)]
    for node in nodes:
        findings += _of_node(node, driver, needs, ports)
    return sorted(findings, key=lambda finding: finding.level)


def _finding(node: str, check: str, problem: str, remedy: str = "", level: str = "") -> Finding:
    """One with the remedy and level that are usual for its check, where none are given."""
    usual = WARNING if check in WARNINGS else ERROR
    return Finding(node, check, problem, remedy or REMEDIES[check], level or usual)


def _of_driver(driver: Machine, needs: Needs, requirements: Iterable[str]) -> Iterator[Finding]:
    """What is wrong with the driver's machine."""
    finding = partial(_finding, DRIVER)
    for wanted in map(Requirement, requirements):
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue  # which only an extra takes
        version = driver.versions.get(wanted.name)
        if version is not None and not _within(version, wanted):
            yield finding("versions", f"{wanted.name} {version}, not {wanted.specifier}")
    yield from _of_remote(driver)
    by_disk: dict[int, dict[str, int]] = {}
    for key, folder in driver.folders.items():
        if problem := _unwritable(folder):
            remedy = f"set {key} to a folder that can be written"
            yield finding("folders", f"{key}: {problem}", remedy)
        if "device" in folder:
            by_disk.setdefault(folder["device"], {})[key] = needs.disk.get(key, 0)
    for sizes in by_disk.values():
        total, free = sum(sizes.values()), min(driver.folders[key]["free"] for key in sizes)
        if total > free:
            parts = ", ".join(f"{key} {decimal(size)}" for key, size in sizes.items())
            problem = f"{decimal(total)} will be written ({parts}), {decimal(free)} are free"
            remedy = "free the disk, name another folder, prune (agrekd outputs prune), or set "
            remedy += "outputs.dtype=int8, outputs.top_k or data.views.count"
            yield finding("disk", problem, remedy)


def _within(version: str, wanted: Requirement) -> bool:
    try:
        return wanted.specifier.contains(version, prereleases=True)
    except InvalidVersion:  # "missing", as older versions of packaging say it
        return False


def _of_cluster(nodes: Sequence[Machine], needs: Needs) -> Iterator[Finding]:
    """GPUs that the job declines, and too little memory for its largest process, or for all."""
    finding = partial(_finding, "cluster")
    if (count := sum(node.gpus for node in nodes)) and needs.declined:
        keys = ", ".join(needs.declined)
        problem = f"Ray counts {count:g}, and the job declines them: {keys} = 0"
        yield finding("GPUs", problem, "leave the keys out, or set them to auto", WARNING)
    free = {node.name: node.memory_free for node in nodes if node.memory_free is not None}
    name, most = max(free.items(), key=lambda item: item[1], default=("", math.inf))
    if needs.process > most:
        problem = f"the job's largest process takes about {decimal(int(needs.process))}, the node "
        problem += f"with most memory free ({name}) has {decimal(int(most))}"
        remedy = "lower fleet.backbones_per_actor, or take nodes with more memory"
        yield finding("memory", problem, remedy)
    elif free and needs.memory > (total := sum(free.values())):
        problem = f"teachers and students take about {decimal(int(needs.memory))}, free are "
        problem += f"{decimal(total)} on all nodes together ({len(free)})"
        yield finding("memory", problem)


def _of_node(
    node: Machine, driver: Machine, needs: Needs, ports: Mapping[int, str]
) -> Iterator[Finding]:
    """What is wrong with a node, by itself or beside the driver."""
    finding = partial(_finding, node.name)
    if node.silence:
        yield finding("answer", f"Ray counts it as alive, but it runs no task ({node.silence})")
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
        yield finding("shared memory", f"{problem}, so it lives on disk, slowly")
    if 0 <= node.open_files < FEW_FILES:  # -1 is no limit
        yield finding("open files", f"a process may have {node.open_files}")
    total, free = node.temporary["total"], node.temporary["free"]
    if free < (1 - FULL) * total:
        problem = f"the disk of the temporary folder is full: {decimal(free)} of {decimal(total)} "
        problem += f"are left, and Ray stops at {1 - FULL:.0%}"
        yield finding(
            "disk", problem, "free it, or start Ray there with --temp-dir on another disk"
        )
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
    yield from _of_data(node, driver)
    yield from _of_remote(node)
    ahead, unsure = node.skew or (0.0, 0.0)
    if abs(ahead) - unsure > SKEW_SECONDS:
        side = "ahead of" if ahead > 0 else "behind"
        yield finding("clock", f"{abs(ahead):.1f} s {side} the driver's")
    for port, addresses in node.listeners.items():
        if not (node.token or all(ipaddress.ip_address(one).is_loopback for one in addresses)):
            problem = f"{ports.get(port, 'Ray')} listens at {', '.join(sorted(set(addresses)))}, "
            problem += f"port {port}, without a token: whoever reaches it can run anything there"
            yield finding("ports", problem)
    if file := node.token_file:
        problem = f"{file} can be read by other users, who can then run anything"
        yield finding("token", problem, f"chmod 600 {file} (Ray makes it so from 2.60.1 on)")


def _of_remote(node: Machine) -> Iterator[Finding]:
    """Why a machine cannot reach the job's object stores."""
    for problem in filter(None, node.remote):
        said = problem.removeprefix("outputs.remote: ").partition(". Is the address")[0]
        yield _finding(node.name, "outputs.remote", said)


def of_network(network: Network | None, needs: Needs) -> Iterator[Finding]:
    """Why processes of several nodes do not find each other."""
    if network is not None and network.fault:
        who = f"{network.processes} processes on {counted(network.nodes, 'node')}"
        problem = f"{who} cannot sum numbers over {network.backend}: {network.fault}"
        level = ERROR if needs.workers > 1 else WARNING
        yield _finding("cluster", "network", problem, level=level)


def _of_data(node: Machine, driver: Machine) -> Iterator[Finding]:
    """What is wrong with the job's data sets on a node."""
    finding = partial(_finding, node.name, "data")
    for mine, other in zip(driver.data, node.data, strict=False):
        if silence := other.get("silence"):
            yield finding(silence, "look whether the storage of the data answers there")
        elif error := other.get("error"):
            remedy = "put the data at the same path as on the driver, readable for Ray's user"
            yield finding(f"cannot be opened ({error})", remedy)
        elif other != mine:
            prints = f"{other['fingerprint'][:12]} instead of {mine['fingerprint'][:12]}"
            remedy = "copy them there again, or share one folder"
            yield finding(f"other data than the driver's ({prints})", remedy)


def _of_gpus(node: Machine) -> Iterator[Finding]:
    """What is wrong where PyTorch does not find the GPUs that Ray counts."""
    count, finding = node.torch_gpus, partial(_finding, node.name, "GPUs")
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
