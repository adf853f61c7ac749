"""Asks the driver's machine and every node of the cluster."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.cloudpickle import register_pickle_by_value, unregister_pickle_by_value
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from agrekd_ray.doctor import probe
from agrekd_ray.doctor.facts import Cluster, Facts, Node
from agrekd_ray.run.session import RaySession

ANSWER_SECONDS = 30.0
TORCH_SECONDS = 120.0
"""PyTorch may start slowly, from a disk across the network."""
DATA_SECONDS = 600.0
"""Opening a data set may read large tables."""
TICKS = 5
"""Round trips of which the quickest measures a clock."""
_HEAD = "node:__internal_head__"


def ask_all(
    session: RaySession, folders: Mapping[str, Path], data: Sequence[str], mine: Sequence[str]
) -> Cluster:
    """What the driver and every node say.

    Args:
        session: the connection to the cluster.
        folders: of the job, by key; each is marked while this runs, to see who shares it.
        data: settings of the job's data sets, as JSON.
        mine: their fingerprints, as the driver has them.
    """
    listening = _ports(session)
    with _marked(folders) as marked:
        asked = {"folders": marked, "ports": sorted(listening)}
        driver = Facts(**probe.Probe().examine({**asked, "ports": []}))
        nodes = _ask_nodes(asked, data)
    return Cluster(driver, nodes, tuple(mine), ports=listening)


def _ports(session: RaySession) -> dict[int, str]:
    """The head node's ports that a stranger could use, with what listens there."""
    found = {"Ray's control service (GCS)": ray.get_runtime_context().gcs_address}
    if session.dashboard:
        found["the dashboard"] = session.dashboard
    return {int(address.rpartition(":")[2]): name for name, address in found.items()}


@contextlib.contextmanager
def _marked(folders: Mapping[str, Path]) -> Iterator[dict[str, tuple[str, str]]]:
    """While the block runs, a small file lies in every folder, or in its nearest parent there.

    Yields:
        By key, the folder and the name of the file. Where it could not be written, the driver's own
        answer says so.
    """
    name = f".agrekd-doctor-{uuid.uuid4().hex}"
    places = {
        next(one for one in (folder, *folder.parents) if one.is_dir())
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


def _ask_nodes(asked: Mapping[str, Any], data: Sequence[str]) -> tuple[Node, ...]:
    alive = [node for node in ray.nodes() if node["Alive"]]
    register_pickle_by_value(probe)  # so that nodes without this package answer, too
    try:
        # No CPU and no GPU of their own: a cluster that is all taken answers, too.
        shell = ray.remote(num_cpus=0, max_restarts=0)(probe.Probe)
        actors = [
            shell.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote()
            for node in alive
        ]
        try:
            found = _examined(alive, actors, asked)
            found = [_clocked(node, actor) for node, actor in zip(found, actors, strict=True)]
            found = _with_gpus(found, actors)
            return tuple(_with_data(found, actors, data) if data else found)
        finally:
            for actor in actors:
                ray.kill(actor)
    finally:
        unregister_pickle_by_value(probe)


def _examined(
    alive: Sequence[Mapping[str, Any]], actors: Sequence[Any], asked: Mapping[str, Any]
) -> list[Node]:
    # Only the head node has the head's ports.
    quiet = {**asked, "ports": []}
    asking = {
        number: actor.examine.remote(asked if _HEAD in node["Resources"] else quiet)
        for number, (node, actor) in enumerate(zip(alive, actors, strict=True))
    }
    nodes = []
    for number, (said, why) in _all_of(asking, ANSWER_SECONDS).items():
        node, resources = alive[number], alive[number]["Resources"]
        nodes.append(
            Node(
                name=f"{node['NodeManagerHostname']} {node['NodeID'][:6]}",
                cpus=resources.get("CPU", 0),
                gpus=resources.get("GPU", 0),
                object_store=int(resources.get("object_store_memory", 0)),
                facts=Facts(**said) if said is not None else None,
                silence=why,
            )
        )
    return nodes


def _clocked(node: Node, actor: Any) -> Node:
    """The node with its clock measured against this one, by halving the quickest round trip."""
    if node.facts is None:
        return node
    trips = []
    for _ in range(TICKS):
        sent = time.time()
        there, _ = _answer(actor.clock.remote(), ANSWER_SECONDS, wait=True)
        if there is not None:
            back = time.time()
            trips.append((back - sent, there - (sent + back) / 2))
    if not trips:
        return node
    trip, skew = min(trips)
    return replace(node, skew=(skew, trip / 2))


def _with_gpus(nodes: list[Node], actors: Sequence[Any]) -> list[Node]:
    """The nodes with what PyTorch finds, where there may be a GPU."""
    answers = {
        number: actor.torch_gpus.remote()
        for number, (node, actor) in enumerate(zip(nodes, actors, strict=True))
        if node.facts is not None and (node.gpus or node.facts.accelerators)
    }
    for number, (said, why) in _all_of(answers, TORCH_SECONDS).items():
        nodes[number] = replace(nodes[number], torch_gpus=why if said is None else said)
    return nodes


def _with_data(nodes: list[Node], actors: Sequence[Any], data: Sequence[str]) -> list[Node]:
    answers = {
        number: actor.data.remote(data)
        for number, (node, actor) in enumerate(zip(nodes, actors, strict=True))
        if node.facts is not None
    }
    for number, (said, why) in _all_of(answers, DATA_SECONDS).items():
        told = tuple(said) if said is not None else None
        nodes[number] = replace(nodes[number], data=told, data_silence=why)
    return nodes


def _all_of(references: Mapping[int, Any], seconds: float) -> dict[int, tuple[Any, str]]:
    """Answers by number as `_answer` has them, waited for together."""
    if references:
        ray.wait(list(references.values()), num_returns=len(references), timeout=seconds)
    return {number: _answer(reference, seconds) for number, reference in references.items()}


def _answer(reference: Any, seconds: float, *, wait: bool = False) -> tuple[Any, str]:
    """An answer that is there by now, and an empty text; or None, and why there is none.

    Args:
        reference: to the answer.
        seconds: that were waited for it, or are.
        wait: whether to wait for it here.
    """
    ready, _ = ray.wait([reference], timeout=seconds if wait else 0)
    if not ready:
        return None, f"no answer within {seconds:.0f} s"
    try:
        return ray.get(reference), ""
    except RayError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        return None, lines[-1].strip() if lines else type(error).__name__
