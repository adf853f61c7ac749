"""What a job takes on machines: a closed form, without queues that vary.

The shape of a live step, for W workers that step together:

    path     = student + messages + bytes + weighting + gradients + crowding + network
    teachers = inputs and forward passes of the busiest actor or GPU
    cores    = all work on the fullest node, shared by its cores

With look-ahead the teachers compute the coming batches meanwhile, and a step takes the largest of
the three; without, it takes path + teachers, and no less than cores. What is assumed stands in
docs/planning.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from agrekd_ray.capacity.size import FLOAT, PROCESS, JobSize
from agrekd_ray.cluster.placement import Node, ResourceRequest
from agrekd_ray.core.weighting import STRATEGIES
from agrekd_ray.experiment.gpus import LARGE, divided, parts, side_by_side, worker_shares
from agrekd_ray.settings import AUTO, Count, NonNegative, Positive, Settings, Share, Whole
from agrekd_ray.student.shared_work import WORTH_STARTS

PARTS = {
    "student": "the student's own step",
    "teachers": "the teachers' forward passes",
    "gradients": "the gradients that teachers work out",
    "crowding": "teachers at their next batch, on the same cores",
    "messages": "the number of actors that are asked",
    "bytes": "the bytes through the weighting actor",
    "weighting": "the weighting actor's computing",
    "network": "the network",
    "cores": "the cores of the fullest node",
    "disk": "the disk",
    "reading": "reading records",
    "weighing": "weighing the teachers' gradients in the student's process",
}
"""What a step or a recording can be held up by, in words."""
PATH = "student", "gradients", "crowding", "messages", "bytes", "weighting", "network"
"""Parts of a step that follow one another."""
GAIN = 0.95
"""A weighting actor for every worker is chosen where the step becomes shorter than this share."""
WEIGH_NS: dict[str, float] = {
    "aver": 53,
    "random": 62,
    "ae_kd": 65,
    "ca_mkd": 65,
    "govern": 103,
    "agre_kd": 116,
}
"""Nanoseconds for a number, measured by `measure.weighing_costs` on two busy cores; a strategy that
was not measured is taken for the slowest."""


class Machines(Settings):
    """The machines; all alike.

    Attributes:
        nodes: how many.
        gpus: of each.
        cpus: cores of each.
        memory_gb: memory of each, GB (10⁹ bytes).
        gbit: bandwidth of each one's network link, Gbit/s, in both directions at once.
        latency_us: of a message between two of them, one way, microseconds.
        disk_mb: what the folder of records takes in, MB/s, over all nodes.
    """

    nodes: Annotated[Count, Field(le=100_000)] = 1
    gpus: Annotated[Whole, Field(le=1024)] = 0
    cpus: Annotated[Count, Field(le=4096)] = 2
    memory_gb: Positive = 64
    gbit: Positive = 10
    latency_us: NonNegative = 100
    disk_mb: Positive = 500

    def as_nodes(self, most: int | None = None, cpus: float = math.inf) -> list[Node]:
        """The machines as a placement is worked out on them.

        Args:
            most: how many at most; so many processes need no more.
            cpus: of each; where GPUs alone are asked for, there is no end of them.
        """
        room = {"CPU": cpus, "GPU": float(self.gpus)}
        return [Node(f"node {n}", room, room) for n in range(min(self.nodes, most or self.nodes))]


def _known_strategies(value: Any) -> Any:
    for name in value if isinstance(value, Mapping) else ():
        if name not in STRATEGIES:
            raise ValueError(f"{name} is no strategy; known: {', '.join(STRATEGIES)}")
    return value


class Costs(Settings):
    """What the parts between student and teachers take; the defaults are of two slow cores.

    Attributes:
        call_ms: a question to the weighting actor and on to one teachers' actor, and back.
        actor_ms: each further actor that is asked.
        host_ms: a teachers' process at each batch, besides reading and forward passes.
        backbone_ms: of its own time, each further backbone in a process.
        copy_gb: GB/s (10⁹ bytes) at which messages go into and out of a process.
        reply_ms: a teachers' actor works out gradients, besides what grows with them.
        reply_ns: for each number of a teacher's gradient.
        weigh_ms: weighing one question's gradients, besides what grows with them.
        weigh_ns: for each number of the gradients [M, B, C], by strategy.
        programme_us: of AE-KD's quadratic programme, for each pair of teachers.
        seal_gb: GB/s at which a record is sealed with its checksum, or verified.
        process_mb: memory of an actor with torch, MB (10⁶ bytes).
        start_s: from the command to the first step: Ray, actors, Train.
    """

    call_ms: NonNegative = 2.0
    actor_ms: NonNegative = 1.0
    host_ms: NonNegative = 0.5
    backbone_ms: NonNegative = 0.5
    copy_gb: Positive = 1.0
    reply_ms: NonNegative = 0.2
    reply_ns: NonNegative = 5.0
    weigh_ms: NonNegative = 1.0
    weigh_ns: Annotated[dict[str, NonNegative], BeforeValidator(_known_strategies)] = WEIGH_NS
    programme_us: NonNegative = 1.0
    seal_gb: Positive = 0.5
    process_mb: NonNegative = PROCESS / 1e6
    start_s: NonNegative = 15

    def weigh(self, strategy: str, members: int, samples: int, classes: int) -> float:
        """Milliseconds that one question's gradients take to be weighed."""
        slope = self.weigh_ns.get(strategy, max(WEIGH_NS.values()))
        programme = self.programme_us * 1e-3 * members**2 if strategy == "ae_kd" else 0.0
        return self.weigh_ms + 1e-6 * members * samples * classes * slope + programme

    def reply(self, members: int, samples: int, classes: int) -> float:
        """Milliseconds that an actor's answer to one question takes, its logits being there."""
        return self.reply_ms + 1e-6 * self.reply_ns * members * samples * classes

    def copy_ms(self, size: float) -> float:
        """Milliseconds in which so many bytes go into or out of a process."""
        return 1e3 * size / (self.copy_gb * 1e9)


class Times(Settings):
    """How long the student and its teachers take, each alone.

    Attributes:
        forward_ms: one teacher's backbone over `student.training.batch_size` samples.
        step_ms: a student's step, by one worker on its part of the batch, on labels alone.
        inputs_ms: a process reads such a batch of samples, as teachers do once a batch.
        forward_busy: share of its device that a forward pass takes: 1 where two at once take
            twice as long, 0 where they do not disturb each other.
        costs: of what is between them.
    """

    forward_ms: NonNegative
    step_ms: Positive
    inputs_ms: NonNegative = 0
    forward_busy: Share = 1
    costs: Costs = Costs()


# --- who is where


def workers_wanted(size: JobSize) -> list[ResourceRequest]:
    """Room that a student's workers take."""
    room = {"CPU": size.student_cpus, "GPU": size.student_gpus}
    return [ResourceRequest("student's worker", room)] * size.workers


def actors_wanted(size: JobSize) -> list[ResourceRequest]:
    """Room that the teachers' actors take."""
    room = {"CPU": size.actor_cpus or 0.0, "GPU": size.actor_gpus}
    return [ResourceRequest("teachers", room)] * size.actors


def _with_gpus(size: JobSize, machines: Machines) -> JobSize:
    """A job with numbers for the GPUs that it leaves open, as a run has them."""
    workers, actors, groups = [size.student_gpus], [size.actor_gpus], 1
    if "student" in size.gpus_left_open:
        nodes = machines.as_nodes(size.workers)
        workers = worker_shares(workers_wanted(size), AUTO, nodes, lambda: size.students_on_a_gpu)
        groups = groups_with_room(replace(size, student_gpus=workers[-1]), machines)
    if "fleet" in size.gpus_left_open and machines.gpus:
        actors = parts(size.actors_on_a_gpu)

    def wanted(worker: float | None, actor: float | None) -> list[ResourceRequest]:
        given = replace(size, student_gpus=worker or 0.0, actor_gpus=actor or 0.0)
        students = [] if worker is None else workers_wanted(given) * groups
        return students + ([] if actor is None else actors_wanted(given))

    nodes = machines.as_nodes(groups * size.workers + size.actors)
    worker, actor = divided(wanted, workers, actors, nodes, size.records)
    return replace(size, student_gpus=worker, actor_gpus=actor)


def groups_with_room(size: JobSize, machines: Machines) -> int:
    """Students that have room side by side once the teachers have gone, at most as many as are."""
    students = len(size.strategies) + size.plain
    most = min(students, size.at_once or students)
    nodes = machines.as_nodes(most * size.workers, machines.cpus)
    return side_by_side(workers_wanted(size), [_useful_share(size)], nodes, most)


def _useful_share(size: JobSize) -> float:
    """Share of a GPU that a worker can make use of, where others could share it."""
    large = "student" in size.gpus_left_open and size.students_on_a_gpu == LARGE
    return 1.0 if large and size.student_gpus else size.student_gpus


# --- what it takes


def forecast(size: JobSize, machines: Machines, times: Times) -> Forecast:
    """What a job would take.

    Args:
        size: of the job; where it leaves the number of weighting actors open, it has those that
            are worth it.
        machines: that it would have.
        times: of student and teachers, each alone.
    """
    size = _with_gpus(size, machines)
    single = Forecast(replace(size, weighting_actors=1), machines, times)
    if size.may_shard and size.weighting_actors != 1:
        several = replace(size, weighting_actors=size.workers)
        sharded = Forecast(several, machines, times, single)
        if size.weighting_actors is not None or sharded.ms < GAIN * single.ms:
            return sharded
    return single


class Forecast:
    """What a job would take; where there is no room for it, as if its parts shared what there is.

    Ray spreads the teachers' actors over the nodes, and fills one GPU with fractions before the
    next. A student's workers fill one node after another; the driver and a lone weighting actor
    are on the first of theirs.

    Args:
        size: of the job, with the GPUs and weighting actors that it would have.
        machines: that it would have.
        times: of student and teachers, each alone.
        single: the same with one weighting actor, where there are several.

    Attributes:
        student_nodes: that the student's workers take.
        workers_here: on the first of them.
        actors_here: teachers' actors on the node that has most.
        actors_per_gpu: on the GPU that has most; 0 without GPUs.
        far: share of the teachers' actors that are on other nodes than the weighting actor.
    """

    def __init__(
        self, size: JobSize, machines: Machines, times: Times, single: Forecast | None = None
    ) -> None:
        self.size, self.machines, self.times, self.single = size, machines, times, single
        self._costs, self._sent, self._shards = (
            times.costs,
            size.traffic,
            size.weighting_actors or 1,
        )
        one_node, worker = machines.as_nodes(1, machines.cpus), workers_wanted(size)[:1]
        on_a_node = side_by_side(worker, [_useful_share(size)], one_node, size.workers)
        self.student_nodes = min(machines.nodes, -(-size.workers // on_a_node))
        self.workers_here = -(-size.workers // self.student_nodes)
        self.actors_here = -(-size.actors // machines.nodes)
        self.far = max(0, size.actors - self.actors_here) / size.actors
        self.actors_per_gpu = 0
        if size.actor_gpus:
            free = machines.gpus - size.workers * size.student_gpus / machines.nodes
            packed = min(self.actors_here, int(1 / size.actor_gpus + 1e-9))
            crowded = math.ceil(self.actors_here / max(1.0, free))  # the others share
            self.actors_per_gpu = max(1, packed, crowded)
        # Milliseconds of a teachers' process for one batch, besides the forward passes, and those
        # in which the passes of the fullest actor keep its device busy.
        further = (size.fullest - 1) * self._costs.backbone_ms
        self._hosting_ms = times.inputs_ms + self._costs.host_ms + further
        self._busy_ms = times.forward_busy * times.forward_ms * size.fullest

    @cached_property
    def shortage(self) -> str | None:
        """What is wanted and not there, in words; None where all has room."""
        size, machines = self.size, self.machines
        gpus, cpus = machines.gpus * machines.nodes, machines.cpus * machines.nodes
        students, teachers = size.workers * size.student_gpus, size.actors * size.actor_gpus
        wanted = students + teachers
        if size.records and "fleet" in size.gpus_left_open and wanted > gpus:
            wanted = max(students, min(teachers, gpus))  # they record before the students begin
        cores = size.workers * size.student_cpus + size.actors * (size.actor_cpus or 0)
        for name, wants, has in (("GPUs", wanted, gpus), ("CPUs", cores, cpus)):
            if wants > has + 1e-9:
                return f"{wants:g} {name} are wanted, {has:g} are there"
        node, room = self.memory["node"] / 1e9, machines.memory_gb
        if node > room:
            return f"{node:,.0f} GB of memory are wanted on the fullest node, {room:,.0f} are there"
        return None

    @cached_property
    def parts(self) -> dict[str, float]:
        """Milliseconds of each part of a step that is taught by the fleet, by names of `PARTS`."""
        size, costs, sent, strategy = self.size, self._costs, self._sent, self.size.strategies[0]
        in_turn: float = sent.questions / self._shards
        through = sent.question * (1 + (1 if sent.shared else size.actors))
        copied = costs.copy_ms(through + sent.replies + sent.answer)
        weighed = costs.weigh(strategy, size.members, sent.samples, size.classes)
        called = costs.call_ms + (size.actors - 1) * costs.actor_ms
        reply = costs.reply(size.fullest_members, sent.samples, size.classes)
        served, replying = called + copied + weighed, sent.questions
        if in_turn * served + reply >= served + sent.questions * reply:
            replying = 1  # hidden behind the weighting actor's work on the questions before
        else:
            in_turn = 1.0
        # Teachers start on their next batch as a question arrives. All that run on a node get the
        # same share of its cores; the path is one of them.
        beside = self._hosting_ms + (0.0 if size.actor_gpus else self._busy_ms)
        crowd = max(0.0, (self.actors_here + 1) / self.machines.cpus - 1)
        return {
            "student": self.times.step_ms,
            "teachers": self._forward_ms,
            "gradients": replying * reply,
            "crowding": beside * crowd if size.look_ahead else 0.0,
            "messages": in_turn * called,
            "bytes": in_turn * copied,
            "weighting": in_turn * weighed,
            "network": self._network_ms() + self._sums_ms(strategy),
            "cores": self._cores_ms(served, reply),
        }

    @property
    def _followed(self) -> tuple[str, ...]:
        return PATH if self.size.look_ahead else (*PATH, "teachers")

    @cached_property
    def ms(self) -> float:
        """Milliseconds of a live step."""
        path = sum(self.parts[name] for name in self._followed)
        return max(path, self.parts["teachers"], self.parts["cores"])

    @property
    def step_bottleneck(self) -> str:
        """The part that holds a live step up."""
        path = sum(self.parts[name] for name in self._followed)
        if self.parts["cores"] == self.ms > path:
            return "cores"
        if self.size.look_ahead and self.parts["teachers"] == self.ms:
            return "teachers"
        return max(self._followed, key=self.parts.__getitem__)

    @property
    def shares(self) -> dict[str, float]:
        """What a live step is spent on, as shares by part, which sum to 1."""
        name = self.step_bottleneck
        if name in ("teachers", "cores") and self.ms == self.parts[name]:
            return {name: 1.0}
        followed = (*PATH, "teachers") if sum(self.parts[n] for n in PATH) < self.ms else PATH
        whole = sum(self.parts[name] for name in followed)
        return {name: self.parts[name] / whole for name in followed}

    @property
    def teacher_idle(self) -> float:
        """Share of a live step in which the busiest teachers' device waits."""
        return 1 - self.parts["teachers"] / self.ms

    @property
    def student_waits(self) -> float:
        """Share of a live step in which the student waits."""
        return 1 - self.parts["student"] / self.ms

    @property
    def into_weighting(self) -> float:
        """Bytes a second into the weighting actor, or each of them."""
        sent = self._sent
        return 1e3 * (sent.question + sent.replies) * sent.questions / self._shards / self.ms

    @cached_property
    def replay(self) -> dict[str, float]:
        """Milliseconds of a step from records by part, the mean over the students with teachers.

        Everything but the sums between workers happens in the student's own process. Records that
        do not fit into half of the memory of its nodes come from the disk, in part.
        """
        size, costs = self.size, self._costs
        row = size.members * size.classes * size.number_bytes
        cache = self.machines.memory_gb * 1e9 / 2 * self.student_nodes
        missed = max(0.0, 1 - cache / max(1, size.record_bytes))
        from_disk = 1e3 * missed * row * size.batch / (self.machines.disk_mb * 1e6)
        whole = {"student": 0.0, "reading": 0.0, "weighing": 0.0, "network": 0.0}
        for strategy in size.strategies:
            samples = size.batch if size.gathers(strategy) else size.part
            shape = size.members, samples, size.classes
            whole["student"] += self.times.step_ms
            whole["reading"] += costs.copy_ms(row * samples) + from_disk
            whole["weighing"] += costs.reply(*shape) + costs.weigh(strategy, *shape)
            whole["network"] += self._sums_ms(strategy)
        return {part: ms / len(size.strategies) for part, ms in whole.items()}

    @property
    def replay_ms(self) -> float:
        """Milliseconds of a step from records."""
        return sum(self.replay.values())

    @cached_property
    def _forward_ms(self) -> float:
        """Inputs and forward passes of a step on the busiest actor or GPU.

        What a pass leaves its device idle for, backbones of an actor share as `concurrent` says;
        what it is busy with, they do in turn. Actors on a node start together and share its cores.
        """
        size, times = self.size, self.times
        idle = (1 - times.forward_busy) * times.forward_ms * -(-size.fullest // size.concurrent)
        crowd = max(1.0, self.actors_here / self.machines.cpus)
        if size.actor_gpus:
            return crowd * self._hosting_ms + self._busy_ms * self.actors_per_gpu + idle
        return crowd * (self._hosting_ms + self._busy_ms) + idle

    def _network_ms(self) -> float:
        """Questions and replies between machines: the busiest link, and the way there and back."""
        size, sent, nodes = self.size, self._sent, self.machines.nodes
        if nodes == 1:
            return 0.0
        asked, far = sent.questions, self.far
        if self._shards > 1:  # each beside its worker
            mine, elsewhere = float(self.workers_here), 0.0
        else:
            mine = float(asked)
            elsewhere = 0.0 if asked == 1 else asked * (1 - self.workers_here / size.workers)
        copies: float = size.actors * far
        taken = self.actors_here
        if sent.shared:  # each node fetches it once
            copies, taken = min(copies, nodes - 1), 1
        busiest = max(
            mine * sent.replies * far + elsewhere * sent.question,
            mine * copies * sent.question + elsewhere * sent.answer,
            self.actors_here * asked * sent.reply,
            taken * asked * sent.question,
        )
        return self._between_nodes_ms(busiest, 4 if elsewhere else 2)

    def _sums_ms(self, strategy: str) -> float:
        """Between the student's workers: gradients in a ring; logits, answer of whole batches."""
        size, workers = self.size, self.size.workers
        if workers == 1:
            return 0.0
        ring = 2 * (workers - 1) / workers * size.student_bytes
        legs = 2 * (workers - 1)
        if size.gathers(strategy):
            logits = (workers - 1) * size.part * size.classes * FLOAT
            packed = size.batch * (size.classes + 2 * size.teachers + 2) * FLOAT
            ring, legs = ring + logits + packed, legs + 2 * workers
        if self.student_nodes == 1:
            return self._costs.copy_ms(ring)
        return self._between_nodes_ms(ring, legs)

    def _between_nodes_ms(self, size: float, legs: int) -> float:
        """Milliseconds of so many bytes over one link, and of the ways from node to node."""
        link = self.machines.gbit * 1e9 / 8
        return 1e3 * size / link + legs * self.machines.latency_us / 1e3

    def _cores_ms(self, served: float, reply: float) -> float:
        """All that the fullest node computes in a step, shared by its cores."""
        size, asked = self.size, self._sent.questions
        weighting = min(self._shards, self.workers_here) * served * asked / self._shards
        forward = 0.0 if size.actor_gpus else self._busy_ms * max(1, int(size.actor_cpus or 1))
        teaching = self.actors_here * (self._hosting_ms + forward + asked * reply)
        threads = 1 if size.student_gpus else max(1, int(size.student_cpus))
        learning = self.workers_here * self.times.step_ms * threads
        return (learning + weighting + teaching) / self.machines.cpus

    @cached_property
    def memory(self) -> dict[str, float]:
        """Bytes of each kind of process, as `JobSize.memory`, and of all on the fullest `node`."""
        each = self.size.memory(self._costs.process_mb * 1e6)
        on_gpu = each["teacher_weights"] if self.size.actor_gpus else 0.0
        node = (
            min(self._shards, self.workers_here) * (each["weighting_actor"] + each["object_store"])
            + self.actors_here * (each["teacher_actor"] - on_gpu)
            + self.workers_here * each["worker"]
        )
        return {**each, "node": node}

    @cached_property
    def recording(self) -> dict[str, float] | None:
        """`seconds` in which all views are recorded in one pass; None where nothing is.

        The teachers compute in `forward_seconds` of them, while the disk needs `disk_seconds`. The
        records have `bytes`, and `peak_bytes` on disk while a view is being recorded.
        """
        size, view = self.size, self.size.view_bytes
        if not size.records:
            return None
        forward = self._forward_ms / 1e3 * size.samples / size.batch
        sealed = view / size.actors / (self._costs.seal_gb * 1e9)
        forward_seconds = size.views * (forward + sealed)
        disk_seconds = size.views * view / (self.machines.disk_mb * 1e6)
        return {
            "seconds": max(forward_seconds, disk_seconds),
            "forward_seconds": forward_seconds,
            "disk_seconds": disk_seconds,
            "bytes": size.record_bytes,
            "peak_bytes": size.record_bytes + view,
        }

    @property
    def recording_bottleneck(self) -> str | None:
        """`teachers` or `disk`; None where nothing is recorded."""
        if self.recording is None:
            return None
        slow_disk = self.recording["disk_seconds"] > self.recording["forward_seconds"]
        return "disk" if slow_disk else "teachers"

    @property
    def whole(self) -> dict[str, float]:
        """Seconds of the job, part by part.

        Its `start`, epochs `live` and `replayed`, students on labels alone (`plain`), `evaluation`,
        and `verifying` records when they are first read.
        """
        return self._whole_and_spent[0]

    @property
    def spent(self) -> dict[str, float]:
        """Seconds of the job by what they are spent on, by the names of `PARTS`."""
        return self._whole_and_spent[1]

    @cached_property
    def _whole_and_spent(self) -> tuple[dict[str, float], dict[str, float]]:
        """See `whole` and `spent`; where that pays, students are side by side."""
        size, step_ms, start = self.size, self.times.step_ms, self._costs.start_s
        taught, epochs = len(size.strategies), size.epochs
        live_epochs = size.views if size.records else taught * epochs
        live = live_epochs * size.steps * self.ms / 1e3
        spent = {part: share * live for part, share in self.shares.items()}
        if self.recording and self.recording["disk_seconds"] > live:
            live = self.recording["disk_seconds"]
            spent = {"disk": live}
        replayed_steps = (taught * epochs - live_epochs) * size.steps
        labelled = size.plain * epochs * size.steps * step_ms / 1e3
        # An evaluation takes a third of a training step for each sample.
        evaluation = (taught + size.plain) * size.evaluated * step_ms / size.part / 3 / 1e3
        groups = groups_with_room(size, self.machines)
        if size.at_once is None and start:  # as `student.shared_work.Pace` decides
            alone = replayed_steps * self.replay_ms / 1e3 + labelled + evaluation
            groups = min(groups, max(1, math.ceil(alone / (WORTH_STARTS * start))))
        whole = {
            "start": start,
            "live": live,
            "replayed": replayed_steps * self.replay_ms / 1e3 / groups,
            "plain": labelled / groups,
            "evaluation": evaluation / groups,
            "verifying": size.record_bytes / (self._costs.seal_gb * 1e9),
        }
        for part, ms in self.replay.items():
            spent[part] = spent.get(part, 0.0) + replayed_steps * ms / 1e3 / groups
        spent["student"] += whole["plain"] + whole["evaluation"]
        spent["reading"] += whole["verifying"]
        return whole, spent

    @property
    def seconds(self) -> float:
        """Seconds of the whole job."""
        return sum(self.whole.values())

    @property
    def bottleneck(self) -> str:
        """What most of the job is spent on."""
        return max(self.spent, key=self.spent.__getitem__)
