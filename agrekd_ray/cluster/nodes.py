"""The cluster's nodes, as a placement is worked out on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray._private.state import actors, available_resources_per_node
from ray.util import placement_group_table

from agrekd_ray.cluster.events import Emit, Notice
from agrekd_ray.cluster.placement import Node, ResourceRequest, check_room
from agrekd_ray.data import Dataset, DataSettings, Prepared, open_dataset
from agrekd_ray.data.chunks import Room
from agrekd_ray.data.prepared_samples import PreparedSamples, stamps_of
from agrekd_ray.data.stamps import Stamps
from agrekd_ray.devices import device_for
from agrekd_ray.errors import DataError

_OURS = ("node:", "object_store_memory", "memory", "accelerator_type:")
SETTLE_SECONDS = 3.0
"""Until room that is still taken is somebody else's."""


@dataclass(frozen=True)
class DriverData:
    """The driver's data set, to be opened on any node; may travel.

    Attributes:
        settings: of it.
        fingerprint: of it, on the driver's node.
        stamps: of the files that the driver has looked at; see `open_dataset`.
    """

    settings: DataSettings
    fingerprint: str
    stamps: Stamps = ()

    @classmethod
    def of(cls, settings: DataSettings) -> DriverData:
        """As it is on this node; prepared, if it is not yet."""
        dataset = open_dataset(settings)
        return cls(settings, dataset.fingerprint, stamps_of(dataset))

    def open(self) -> Dataset:
        """The data set, on the node of this process.

        Where the driver's prepared samples are there, no file of the sources is looked at. A node
        of its own disk looks at all of them, and prepares them within what Ray has granted.

        Raises:
            DataError: it cannot be opened there, or is another one.
        """
        there: Dataset = open_dataset(self.settings, self.stamps)
        if self.stamps and not self._is_ready(there):
            there = open_dataset(self.settings)
        if isinstance(there, PreparedSamples) and there.unprepared():
            there.prepare(room=granted_room())
        if there.fingerprint != self.fingerprint:
            raise DataError(
                f"node {this_node()}: the data there differ from the driver's "
                f"({there.fingerprint[:12]} instead of {self.fingerprint[:12]}); copy them again."
            )
        return there

    def _is_ready(self, there: Dataset) -> bool:
        """Whether the driver's data are prepared there."""
        return not (isinstance(there, Prepared) and there.unprepared()) and (
            there.fingerprint == self.fingerprint
        )


def granted_room() -> Room:
    """What this process may use of its node: the processors that Ray has granted its task."""
    return Room.of_process(ray.get_runtime_context().get_assigned_resources().get("CPU", 0))


def look_for_room(
    students: Sequence[ResourceRequest], teachers: Sequence[ResourceRequest], emit: Emit
) -> list[Node]:
    """Refuse what never finds room on the cluster; say what waits for room that others hold.

    Args:
        students: workers.
        teachers: what else must be there at the same time.
        emit: tells the driver.

    Returns:
        The nodes.

    Raises:
        RunError: says what is wanted and what is there.
    """
    # What has just ended, like the tasks that made the teachers, gives its room back in a moment.
    until = time.monotonic() + SETTLE_SECONDS
    nodes = cluster_nodes()
    while (waits := check_room(students, teachers, nodes)) and time.monotonic() < until:
        time.sleep(0.1)
        nodes = cluster_nodes()
    if waits:
        emit(Notice(waits))
    return nodes


def cluster_nodes() -> list[Node]:
    """All nodes that are alive, with what each has and what is free of it."""
    free = available_resources_per_node()
    return [
        Node(
            name=_name(node),
            total=_counted(node["Resources"]),
            free=_counted(free.get(node["NodeID"], {})),
            labels=dict(node.get("Labels") or {}),
            id=node["NodeID"],
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def settled_nodes() -> list[Node]:
    """All nodes, once GPUs that have just been given back are free; a moment later at most."""
    until = time.monotonic() + SETTLE_SECONDS
    nodes = cluster_nodes()
    while time.monotonic() < until and any(
        node.free.get("GPU", 0) < node.total.get("GPU", 0) for node in nodes
    ):
        time.sleep(0.1)
        nodes = cluster_nodes()
    return nodes


def device_here(device: Callable[[], object] = lambda: "cuda") -> str:
    """The device of this process: a GPU where Ray gave it one.

    Args:
        device: what stands for that GPU.

    Raises:
        RunError: PyTorch cannot use it; names the node and the cause.
    """
    given = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    if not given:
        return device_for("")
    granted = f"node {this_node()}: Ray has given a process GPU {', '.join(given)}"
    return device_for(granted, str(device()) if torch.cuda.is_available() else "cuda")


def group_waits() -> bool:
    """Whether a worker group of this driver's has no room, or has lost it."""
    job = ray.get_runtime_context().get_job_id()
    waiting = ("PENDING", "RESCHEDULING")
    found = placement_group_table().items()
    return any(group.endswith(job) and about["state"] in waiting for group, about in found)


def waits_for_room(actor: Any) -> bool:
    """Whether an actor has never had room on any node yet: a process of its own."""
    about = actors(actor._actor_id.hex())
    return about.get("State") in ("DEPENDENCIES_UNREADY", "PENDING_CREATION") and not about["Pid"]


def this_node() -> str:
    """Of this process: its node's name, as `cluster_nodes` has it."""
    here = ray.get_runtime_context().get_node_id()
    return next((_name(n) for n in ray.nodes() if n["NodeID"] == here), here[:8])


def _name(node: dict[str, object]) -> str:
    """Address, and the beginning of the id: several nodes may share a machine."""
    return f"{node['NodeManagerAddress']} ({str(node['NodeID'])[:6]})"


def _counted(resources: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in resources.items() if not k.startswith(_OURS)}
