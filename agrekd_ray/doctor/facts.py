"""What is known of the driver and of every node, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DRIVER = "driver"
"""The name of the process that asks."""


@dataclass(frozen=True)
class Facts:
    """What `Probe.examine` says of a machine.

    Attributes:
        host: its name.
        versions: by package, `python` and `agrekd_ray` included; or that one is missing.
        code: digest of this package's source text there; empty where it is missing.
        accelerators: whether it has device files of GPUs.
        memory_free: bytes; None where the system does not tell.
        shared_memory: bytes of `/dev/shm`; None where there is none.
        open_files: that a process may have.
        temporary: bytes `free` and `total` of the temporary folder's disk, where Ray writes.
        folders: by key of the job; see `Probe`.
        listeners: addresses by port.
        token: whether Ray asks for a token there.
        token_file: where the token is, if other users can read it; else empty.
    """

    host: str
    versions: Mapping[str, str]
    code: str
    accelerators: bool
    memory_free: int | None
    shared_memory: int | None
    open_files: int
    temporary: Mapping[str, int]
    folders: Mapping[str, Mapping[str, Any]]
    listeners: Mapping[int, list[str]]
    token: bool
    token_file: str


@dataclass(frozen=True)
class Node:
    """A node of the cluster as Ray counts it, and as it answers.

    Attributes:
        name: host and the beginning of Ray's id, for people.
        cpus: logical CPUs that Ray counts.
        gpus: GPUs that Ray counts.
        object_store: bytes of its object store.
        facts: what it says; None where it did not answer.
        silence: why it did not.
        torch_gpus: that PyTorch finds, or why it does not say; None where nobody asked, because
            neither Ray nor the machine knows of a GPU.
        skew: seconds by which its clock is ahead of the driver's, and how far that may be off; None
            where it was not measured.
        data: what `Probe.data` says; None where that was not asked, or not answered.
        data_silence: why it was not answered; empty where it was, or was not asked.
    """

    name: str
    cpus: float
    gpus: float
    object_store: int
    facts: Facts | None
    silence: str = ""
    torch_gpus: int | str | None = None
    skew: tuple[float, float] | None = None
    data: tuple[Mapping[str, str], ...] | None = None
    data_silence: str = ""


@dataclass(frozen=True)
class Cluster:
    """All that the checks look at.

    Attributes:
        driver: the machine of the driver.
        nodes: those that Ray counts as alive.
        data: fingerprints of the job's data sets, as the driver has them.
        tracking: what is wrong with the MLflow store; empty where nothing is, or was not asked.
        ports: what listens at them on the head node, by port.
    """

    driver: Facts
    nodes: tuple[Node, ...]
    data: tuple[str, ...] = ()
    tracking: str = ""
    ports: Mapping[int, str] = field(default_factory=dict)

    @property
    def answering(self) -> list[tuple[Node, Facts]]:
        """The nodes that answered, with what they said."""
        return [(node, node.facts) for node in self.nodes if node.facts is not None]
