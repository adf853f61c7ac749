"""From facts to findings: what is wrong, where, and what to do about it. Pure functions."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version
from rich.filesize import decimal

from agrekd_ray.doctor.facts import DRIVER, Cluster, Facts, Node
from agrekd_ray.doctor.needs import Needs

ERROR, WARNING = "error", "warning"
FULL = 0.95
"""Share of a disk beyond which Ray stops writing to it."""
FEW_FILES = 4096
SKEW_SECONDS = 1.0


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

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


def diagnose(cluster: Cluster, needs: Needs, requirements: Sequence[str]) -> list[Finding]:
    """All findings, errors first.

    Args:
        cluster: what is known.
        needs: of the job.
        requirements: of this package, as its metadata has them (`torch<3,>=2.6`).
    """
    found: list[Finding] = []
    checks: tuple[Callable[[], Iterable[Finding]], ...] = (
        lambda: silence(cluster.nodes),
        lambda: versions(cluster, requirements),
        lambda: gpus(cluster, needs),
        lambda: memory(cluster, needs),
        lambda: object_store(cluster, needs),
        lambda: open_files(cluster),
        lambda: temporary(cluster),
        lambda: folders(cluster),
        lambda: disk(cluster.driver, needs),
        lambda: data(cluster),
        lambda: clocks(cluster.nodes),
        lambda: ports(cluster),
        lambda: token_files(cluster),
        lambda: tracking(cluster),
    )
    for check in checks:
        found += check()
    return sorted(found, key=lambda finding: finding.level != ERROR)


def silence(nodes: Iterable[Node]) -> Iterable[Finding]:
    """Nodes that Ray counts as alive and that run no task."""
    for node in nodes:
        if node.facts is None:
            yield Finding(
                node.name,
                "answer",
                f"Ray counts it as alive, but it runs no task ({node.silence})",
                "look at /tmp/ray/session_latest/logs there; `ray stop` and start it again",
            )


def versions(cluster: Cluster, requirements: Sequence[str]) -> Iterable[Finding]:
    """Versions that are not what this package takes, or not the driver's."""
    ranges = _ranges(requirements)
    mine = cluster.driver
    remedy = "install the same on every node, best of all from one image (Dockerfile)"
    for name, found in mine.versions.items():
        wanted = ranges.get(name)
        if wanted is not None and not _within(found, wanted):
            yield Finding(DRIVER, "versions", f"{name} {found}, not {wanted.specifier}", remedy)
    for node, facts in cluster.answering:
        for name, found in facts.versions.items():
            here = mine.versions.get(name)
            if found != here:
                problem = f"{name} {found}, the driver has {here}"
                yield Finding(node.name, "versions", problem, remedy)
        same = facts.versions.get("agrekd_ray") == mine.versions.get("agrekd_ray")
        if same and facts.code != mine.code:
            problem = "other code of agrekd_ray under the same version"
            yield Finding(node.name, "versions", problem, remedy)


def gpus(cluster: Cluster, needs: Needs) -> Iterable[Finding]:
    """GPUs that Ray counts and PyTorch does not find, the other way round, or that nobody wants."""
    there = sum(node.gpus for node in cluster.nodes)
    if there and needs.declined:
        problem = (
            f"Ray counts {there:g}, and the job declines them: {', '.join(needs.declined)} = 0"
        )
        remedy = "leave the keys out, or set them to auto"
        yield Finding("cluster", "GPUs", problem, remedy, WARNING)
    for node in cluster.nodes:
        found = node.torch_gpus
        if found is None:
            continue
        if isinstance(found, str):
            problem = f"PyTorch does not say how many it finds ({found})"
            remedy = 'try there: python -c "import torch; print(torch.cuda.device_count())"'
            yield Finding(node.name, "GPUs", problem, remedy)
        elif found < node.gpus:
            yield Finding(
                node.name,
                "GPUs",
                f"Ray counts {node.gpus:g}, PyTorch finds {found}",
                "install a PyTorch with CUDA and the driver that it needs (image VARIANT=-gpu), or "
                "start Ray there with --num-gpus as many as there are",
            )
        elif found > node.gpus:
            yield Finding(
                node.name,
                "GPUs",
                f"PyTorch finds {found}, Ray counts {node.gpus:g}; the others stay idle",
                f"start Ray there with --num-gpus={found}",
                WARNING,
            )


def memory(cluster: Cluster, needs: Needs) -> Iterable[Finding]:
    """Too little of it for the job's largest process, or for all of them together."""
    free = {
        node.name: facts.memory_free
        for node, facts in cluster.answering
        if facts.memory_free is not None
    }
    if not free:
        return
    name, most = max(free.items(), key=lambda item: item[1])
    if needs.process > most:
        yield Finding(
            "cluster",
            "memory",
            f"the job's largest process takes about {decimal(needs.process)}, the node with most "
            f"memory free ({name}) has {decimal(most)}",
            "lower fleet.backbones_per_actor, or take nodes with more memory",
        )
    elif needs.memory > sum(free.values()):
        yield Finding(
            "cluster",
            "memory",
            f"teachers and students take about {decimal(needs.memory)}, free are "
            f"{decimal(sum(free.values()))} on all nodes together ({len(free)})",
            "add nodes, or record with fewer teachers at a time",
        )


def object_store(cluster: Cluster, needs: Needs) -> Iterable[Finding]:
    """Too small for what is on its way, or larger than the shared memory that it lives in."""
    for node, facts in cluster.answering:
        if node.object_store < needs.object_store:
            yield Finding(
                node.name,
                "object store",
                f"{decimal(node.object_store)}, the job has {decimal(needs.object_store)} on its "
                "way at once",
                "start Ray there with a larger --object-store-memory, or lower fleet.look_ahead",
            )
        if facts.shared_memory is not None and facts.shared_memory < node.object_store:
            yield Finding(
                node.name,
                "shared memory",
                f"/dev/shm has {decimal(facts.shared_memory)}, the object store wants "
                f"{decimal(node.object_store)}, so it lives on disk, slowly",
                "docker run --shm-size=4g; on Kubernetes an emptyDir with medium: Memory at "
                "/dev/shm",
                WARNING,
            )


def open_files(cluster: Cluster) -> Iterable[Finding]:
    """A limit that many actors and records reach."""
    for node, facts in cluster.answering:
        if 0 <= facts.open_files < FEW_FILES:  # -1 is no limit
            problem = f"a process may have {facts.open_files}"
            remedy = "ulimit -n 65536 before `ray start`"
            yield Finding(node.name, "open files", problem, remedy, WARNING)


def temporary(cluster: Cluster) -> Iterable[Finding]:
    """A disk so full that Ray refuses to write its objects and logs there."""
    for node, facts in cluster.answering:
        total, free = facts.temporary["total"], facts.temporary["free"]
        if free < (1 - FULL) * total:
            problem = f"the disk of the temporary folder is full: {decimal(free)} of "
            problem += f"{decimal(total)} are left, and Ray stops at {1 - FULL:.0%}"
            remedy = "free it, or start Ray there with --temp-dir on another disk"
            yield Finding(node.name, "disk", problem, remedy)


MAY_DIFFER = {"outputs.store"}
"""Folders that may be each node's own: records travel through Ray where they are not shared."""


def folders(cluster: Cluster) -> Iterable[Finding]:
    """Folders of the job that a node cannot write, or that must be the driver's and are not."""
    for key, mine in cluster.driver.folders.items():
        full = "" if mine.get("marked") else "no file can be made there; its disk may be full"
        if problem := _unwritable(mine) or full:
            remedy = f"set {key} to a folder that can be written"
            yield Finding(DRIVER, "folders", f"{key}: {problem}", remedy)
            continue
        for node, facts in cluster.answering:
            there = facts.folders[key]
            if key in MAY_DIFFER or there.get("marked", "error" in there):
                problem = _unwritable(there)
                remedy = "let the user that Ray runs as write there, on every node"
            else:
                problem = f"{mine['there']} is not the driver's"
                remedy = f"mount the same storage there, or set {key} to a folder that is shared"
            if problem:
                yield Finding(node.name, "folders", f"{key}: {problem}", remedy)


def disk(driver: Facts, needs: Needs) -> Iterable[Finding]:
    """Less room than what the job will write; folders on one disk share it."""
    by_disk: dict[int, list[str]] = {}
    for key, folder in driver.folders.items():
        if "device" in folder:
            by_disk.setdefault(folder["device"], []).append(key)
    for keys in by_disk.values():
        wanted = sum(needs.disk.get(key, 0) for key in keys)
        free = driver.folders[keys[0]]["free"]
        if wanted > free:
            parts = ", ".join(f"{key} {decimal(needs.disk.get(key, 0))}" for key in keys)
            yield Finding(
                DRIVER,
                "disk",
                f"{decimal(wanted)} will be written ({parts}), {decimal(free)} are free",
                "free the disk, name another folder, prune (agrekd outputs prune), or set "
                "outputs.dtype=float16 or data.views.count",
            )


def data(cluster: Cluster) -> Iterable[Finding]:
    """Nodes whose data are missing, or differ from the driver's."""
    for node in cluster.nodes:
        if node.data_silence:
            remedy = "look whether the storage of the data answers there"
            yield Finding(node.name, "data", node.data_silence, remedy)
        for mine, there in zip(cluster.data, node.data or (), strict=False):
            if error := there.get("error"):
                remedy = "put the data at the same path as on the driver, readable for Ray's user"
                yield Finding(node.name, "data", f"cannot be opened ({error})", remedy)
            elif (found := there["fingerprint"]) != mine:
                yield Finding(
                    node.name,
                    "data",
                    f"other data than the driver's ({found[:12]} instead of {mine[:12]})",
                    "copy them there again, or share one folder",
                )


def clocks(nodes: Iterable[Node]) -> Iterable[Finding]:
    """Clocks that are surely more than a second away from the driver's."""
    for node in nodes:
        if node.skew is not None and abs(node.skew[0]) - node.skew[1] > SKEW_SECONDS:
            ahead = "ahead of" if node.skew[0] > 0 else "behind"
            problem = f"{abs(node.skew[0]):.1f} s {ahead} the driver's"
            remedy = "let a time service (chrony, systemd-timesyncd) set it"
            yield Finding(node.name, "clock", problem, remedy, WARNING)


def ports(cluster: Cluster) -> Iterable[Finding]:
    """Ports of the head node that others can reach, where nobody asks them for a token."""
    for node, facts in cluster.answering:
        if facts.token:
            continue
        open_ones = {
            port: sorted(set(addresses))
            for port, addresses in facts.listeners.items()
            if any(not ipaddress.ip_address(address).is_loopback for address in addresses)
        }
        for port, addresses in open_ones.items():
            yield Finding(
                node.name,
                "ports",
                f"{cluster.ports.get(port, 'Ray')} listens at {', '.join(addresses)}, port {port}, "
                "without a token: whoever reaches it can run anything there",
                "export RAY_AUTH_MODE=token on every node and client before `ray start`, with one "
                "token for all (ray get-auth-token --generate; RAY_AUTH_TOKEN); keep "
                "--dashboard-host 127.0.0.1",
                WARNING,
            )


def token_files(cluster: Cluster) -> Iterable[Finding]:
    """Tokens that other users of a machine can read."""
    for node, facts in cluster.answering:
        if facts.token_file:
            problem = f"{facts.token_file} can be read by other users, who can then run anything"
            remedy = f"chmod 600 {facts.token_file} (Ray makes it so from 2.60.1 on)"
            yield Finding(node.name, "token", problem, remedy, WARNING)


def tracking(cluster: Cluster) -> Iterable[Finding]:
    """An MLflow store that does not answer."""
    if cluster.tracking:
        problem, _, remedy = cluster.tracking.partition("\n")
        remedy = remedy or "set tracking.uri to a store that answers"
        yield Finding(DRIVER, "MLflow", problem, remedy)


def _unwritable(folder: object) -> str:
    """Why nothing can be written to a folder, as `Probe` found it; empty where it can."""
    assert isinstance(folder, dict)
    if error := folder.get("error"):
        return f"cannot be reached ({error})"
    return "" if folder["writable"] else f"{folder['there']} cannot be written"


def _ranges(requirements: Sequence[str]) -> dict[str, Requirement]:
    """What this package takes, by name; what only an extra takes is left out."""
    parsed = [Requirement(text) for text in requirements]
    return {one.name: one for one in parsed if one.marker is None or one.marker.evaluate()}


def _within(found: str, wanted: Requirement) -> bool:
    try:
        return wanted.specifier.contains(Version(found), prereleases=True)
    except InvalidVersion:
        return False


def counted(findings: Iterable[Finding]) -> str:
    """`1 error, 2 warnings`."""
    counts = Counter(finding.level for finding in findings)
    words = [f"{counts[level]} {level}{'s' * (counts[level] != 1)}" for level in (ERROR, WARNING)]
    return ", ".join(words)
