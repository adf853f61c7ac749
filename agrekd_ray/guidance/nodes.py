"""The cluster's nodes, as a placement is worked out on them."""

from __future__ import annotations

import ray
from ray._private.state import available_resources_per_node

from agrekd_ray.guidance.placement import Node

_OURS = ("node:", "object_store_memory", "memory", "accelerator_type:")


def cluster_nodes() -> list[Node]:
    """All nodes that are alive, with what each has and what is free of it."""
    free = available_resources_per_node()
    return [
        Node(
            name=_name(node),
            total=_counted(node["Resources"]),
            free=_counted(free.get(node["NodeID"], {})),
            labels=dict(node.get("Labels") or {}),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def this_node() -> str:
    """Of this process: its node's name, as `cluster_nodes` has it."""
    here = ray.get_runtime_context().get_node_id()
    return next((_name(n) for n in ray.nodes() if n["NodeID"] == here), here[:8])


def _name(node: dict[str, object]) -> str:
    """Address, and the beginning of the id: several nodes may share a machine."""
    return f"{node['NodeManagerAddress']} ({str(node['NodeID'])[:6]})"


def _counted(resources: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in resources.items() if not k.startswith(_OURS)}
