"""What a driver must know of the cluster before it begins: it is part of what records are of."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence

import torch

from agrekd_ray.cluster.environment import prepare
from agrekd_ray.cluster.placement import Node
from agrekd_ray.config import Job
from agrekd_ray.errors import RunError
from agrekd_ray.experiment.gpus import numbered
from agrekd_ray.settings import AUTO


def settled(job: Job) -> Job:
    """The job with what its teachers compute in, where it leaves that and their GPUs open.

    Args:
        job: the job; where its cluster does not answer, it stays as it is.
    """
    fleet = job.fleet
    places = [place.gpus for place in fleet.teachers.values()]
    if fleet.precision != "auto" or AUTO not in (fleet.gpus, *places) or job.guidance == "local":
        return job
    try:
        nodes = _nodes(job.ray.address)
    except RunError:  # which the run meets itself
        return job
    numbers = numbered(job, nodes, fleet=1.0).fleet.computes_in
    return job.model_copy(update={"fleet": fleet.model_copy(update={"precision": numbers})})


def _nodes(address: str | None) -> Sequence[Node]:
    """Of the cluster that is joined, or that would be started on this machine."""
    joined = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    if joined:
        from agrekd_ray.cluster.nodes import cluster_nodes

        return cluster_nodes()
    if address is None:
        room = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
        return [Node("this machine", room, room)]
    return _looked_up(address)


@functools.cache
def _looked_up(address: str) -> Sequence[Node]:
    """Of a cluster that is joined for a look, once a process."""
    prepare(starts_cluster=False)
    from agrekd_ray.cluster.nodes import cluster_nodes
    from agrekd_ray.cluster.session import RaySession

    session = RaySession(address, 1, lambda text: None)
    try:
        return cluster_nodes()
    finally:
        session.close()
