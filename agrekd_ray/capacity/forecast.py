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
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from agrekd_ray.capacity.size import FLOAT, PROCESS, JobSize, Traffic
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

    @property
    def link(self) -> float:
        """Bytes a second of a link."""
        return self.gbit * 1e9 / 8

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
    weigh_ns: Annotated[dict[str, NonNegative], BeforeValidator(_known_strategies)] = Field(
        default_factory=lambda: dict(WEIGH_NS)
    )
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


@dataclass(frozen=True)
class Placing:
    """Actors and workers on machines that are all alike.

    Attributes:
        student_nodes: that the student's workers take, filled one after another.
        workers_here: on the first of them, where the driver and a lone weighting actor are too.
        actors_here: teachers' actors on the node that has most; Ray spreads them.
        actors_per_gpu: on the GPU that has most; 0 without GPUs.
        far: share of the teachers' actors that are on other nodes than the weighting actor.
        gpus: wanted, and there.
        cpus: wanted, and there.
    """

    student_nodes: int
    workers_here: int
    actors_here: int
    actors_per_gpu: int
    far: float
    gpus: tuple[float, float]
    cpus: tuple[float, float]

    @property
    def shortage(self) -> str | None:
        """What is wanted and not there, in words; None where all has room."""
        for name, (wanted, there) in (("GPUs", self.gpus), ("CPUs", self.cpus)):
            if wanted > there + 1e-9:
                return f"{wanted:g} {name} are wanted, {there:g} are there"
        return None


def workers_wanted(size: JobSize, gpus: float | None = None) -> list[ResourceRequest]:
    """Room that a student's workers take, with a share of a GPU that is not the job's own."""
    share = size.student_gpus if gpus is None else gpus
    return [
        ResourceRequest("student's worker", {"CPU": size.student_cpus, "GPU": share})
    ] * size.workers


def actors_wanted(size: JobSize, gpus: float | None = None) -> list[ResourceRequest]:
    """Room that the teachers' actors take, likewise."""
    share = size.actor_gpus if gpus is None else gpus
    return [
        ResourceRequest("teachers", {"CPU": size.actor_cpus or 0.0, "GPU": share})
    ] * size.actors


def with_gpus(size: JobSize, machines: Machines) -> JobSize:
    """A job with numbers for the GPUs that it leaves open, as a run has them."""
    workers, actors, groups = [size.student_gpus], [size.actor_gpus], 1
    if "student" in size.gpus_left_open:
        nodes = machines.as_nodes(size.workers)
        most = size.students_on_a_gpu
        workers = worker_shares(workers_wanted(size), AUTO, nodes, lambda: most)
        groups = groups_with_room(replace(size, student_gpus=workers[-1]), machines)
    if "fleet" in size.gpus_left_open and machines.gpus:
        actors = parts(size.actors_on_a_gpu)

    def wanted(worker: float | None, actor: float | None) -> list[ResourceRequest]:
        students = [] if worker is None else workers_wanted(size, worker) * groups
        return students + ([] if actor is None else actors_wanted(size, actor))

    nodes = machines.as_nodes(groups * size.workers + size.actors)
    worker, actor = divided(wanted, workers, actors, nodes, size.records)
    return replace(size, student_gpus=worker, actor_gpus=actor)


def groups_with_room(size: JobSize, machines: Machines) -> int:
    """Students that have room side by side once the teachers have gone, at most as many as are."""
    students = len(size.strategies) + size.plain
    most = min(students, size.at_once or students)
    nodes = machines.as_nodes(most * size.workers, machines.cpus)
    return side_by_side(workers_wanted(size), [_worth(size)], nodes, most)


def _worth(size: JobSize) -> float:
    """Share of a GPU that a worker can make use of, where others could share it."""
    large = "student" in size.gpus_left_open and size.students_on_a_gpu == LARGE
    return 1.0 if large and size.student_gpus else size.student_gpus


def place(size: JobSize, machines: Machines) -> Placing:
    """Place a job; where there is no room for it, as if its parts shared what there is.

    Ray spreads the actors over the nodes, and fills one GPU with fractions before the next.
    """
    nodes, there = machines.nodes, machines.gpus * machines.nodes
    one_node = machines.as_nodes(1, machines.cpus)
    per_node = side_by_side(workers_wanted(size)[:1], [_worth(size)], one_node, size.workers)
    student_nodes = min(nodes, -(-size.workers // per_node))
    actors_here = -(-size.actors // nodes)
    actors_per_gpu = 0
    students, teachers = size.workers * size.student_gpus, size.actors * size.actor_gpus
    if size.actor_gpus:
        free = max(1.0, (there - students) / nodes)
        packed = min(actors_here, int(1 / size.actor_gpus + 1e-9)) if size.actor_gpus <= 1 else 1
        actors_per_gpu = max(1, packed, math.ceil(actors_here / free))  # those that fit not, share
    gpus = students + teachers
    if size.records and "fleet" in size.gpus_left_open and gpus > there:
        gpus = max(students, min(teachers, there))  # they record before the students begin
    actor_cpus = (size.actor_cpus or 0) * size.actors
    return Placing(
        student_nodes=student_nodes,
        workers_here=-(-size.workers // student_nodes),
        actors_here=actors_here,
        actors_per_gpu=actors_per_gpu,
        far=max(0, size.actors - actors_here) / size.actors,
        gpus=(gpus, there),
        cpus=(size.workers * size.student_cpus + actor_cpus, machines.cpus * nodes),
    )


@dataclass(frozen=True)
class Step:
    """One live step.

    Attributes:
        ms: that it takes.
        parts: milliseconds of each part, by the names of `PARTS`.
        bottleneck: the part that holds it up.
        teacher_idle: share of the time in which the busiest teachers' device waits.
        student_waits: share in which the student waits.
        into_weighting: bytes a second into the weighting actor, or each of them.
        traffic: bytes of its messages.
    """

    ms: float
    parts: dict[str, float]
    bottleneck: str
    teacher_idle: float
    student_waits: float
    into_weighting: float
    traffic: Traffic

    @property
    def shares(self) -> dict[str, float]:
        """What the step is spent on, as shares by part, which sum to 1."""
        if self.bottleneck in ("teachers", "cores") and self.ms == self.parts[self.bottleneck]:
            return {self.bottleneck: 1.0}
        followed = (*PATH, "teachers") if sum(self.parts[n] for n in PATH) < self.ms else PATH
        whole = sum(self.parts[name] for name in followed)
        return {name: self.parts[name] / whole for name in followed}


class _Model:
    """A job on machines, with times of its parts: everything that a forecast is made of."""

    def __init__(self, size: JobSize, machines: Machines, times: Times, placing: Placing) -> None:
        self.size, self.machines, self.times, self.placing = size, machines, times, placing
        self.costs = times.costs
        self.hosting = (
            times.inputs_ms + self.costs.host_ms + (size.fullest - 1) * self.costs.backbone_ms
        )
        """Milliseconds of a teachers' process for one batch, besides the forward passes."""
        self.busy = times.forward_busy * times.forward_ms * size.fullest
        """Milliseconds in which the passes of the fullest actor keep its device busy."""

    def forward_ms(self) -> float:
        """Inputs and forward passes of a step on the busiest actor or GPU.

        What a pass leaves its device idle for, backbones of an actor share as `concurrent` says;
        what it is busy with, they do in turn. Actors on a node start together and share its cores.
        """
        size, times = self.size, self.times
        idle = (1 - times.forward_busy) * times.forward_ms * -(-size.fullest // size.concurrent)
        crowd = max(1.0, self.placing.actors_here / self.machines.cpus)
        if size.actor_gpus:
            return crowd * self.hosting + self.busy * self.placing.actors_per_gpu + idle
        return crowd * (self.hosting + self.busy) + idle

    def live_step(self) -> Step:
        """A step that is taught by the fleet."""
        size, costs, sent = self.size, self.costs, self.size.traffic
        in_turn = sent.questions / size.weighting_actors
        through = sent.question * (1 + (1 if sent.shared else size.actors))
        copied = 1e3 * (through + sent.replies + sent.answer) / (costs.copy_gb * 1e9)
        weighed = costs.weigh(size.strategy, size.members, sent.samples, size.classes)
        called = costs.call_ms + (size.actors - 1) * costs.actor_ms
        reply = costs.reply(len(size.fullest_names), sent.samples, size.classes)
        served = called + copied + weighed
        replying = sent.questions
        if in_turn * served + reply >= served + sent.questions * reply:
            replying = 1  # hidden behind the weighting actor's work on the questions before
        else:
            in_turn = 1.0
        parts = {
            "student": self.times.step_ms,
            "teachers": self.forward_ms(),
            "gradients": replying * reply,
            "crowding": self._crowding(),
            "messages": in_turn * called,
            "bytes": in_turn * copied,
            "weighting": in_turn * weighed,
            "network": self._network(sent) + self._sums(size.strategy),
            "cores": self._cores(sent, served, reply),
        }
        followed = PATH if size.look_ahead else (*PATH, "teachers")
        path = sum(parts[name] for name in followed)
        ms = max(path, parts["teachers"], parts["cores"])
        if parts["cores"] == ms > path:
            bottleneck = "cores"
        elif size.look_ahead and parts["teachers"] == ms:
            bottleneck = "teachers"
        else:
            bottleneck = max(followed, key=parts.__getitem__)
        into = (sent.question + sent.replies) * sent.questions / size.weighting_actors
        return Step(
            ms=ms,
            parts=parts,
            bottleneck=bottleneck,
            teacher_idle=1 - parts["teachers"] / ms,
            student_waits=1 - parts["student"] / ms,
            into_weighting=1e3 * into / ms,
            traffic=sent,
        )

    def replayed(self, strategy: str) -> dict[str, float]:
        """Milliseconds of the parts of a step that is taught from records, one after another.

        Everything but the sums between workers happens in the student's own process. Records that
        do not fit into half of the memory of its nodes come from the disk, in part.
        """
        size, costs = self.size, self.costs
        samples = size.batch if size.gathers(strategy) else size.part
        row = size.members * size.classes * size.number_bytes
        cache = self.machines.memory_gb * 1e9 / 2 * self.placing.student_nodes
        missed = max(0.0, 1 - cache / max(1, size.record_bytes))
        return {
            "student": self.times.step_ms,
            "reading": 1e3 * row * samples / (costs.copy_gb * 1e9)
            + 1e3 * missed * row * size.batch / (self.machines.disk_mb * 1e6),
            "weighing": costs.reply(size.members, samples, size.classes)
            + costs.weigh(strategy, size.members, samples, size.classes),
            "network": self._sums(strategy),
        }

    def _crowding(self) -> float:
        """How long an answer is held up by teachers that start on their next batch meanwhile.

        All that run on a node get the same share of its cores; the path is one of them.
        """
        if self.size.look_ahead == 0:
            return 0.0
        work = self.hosting + (0.0 if self.size.actor_gpus else self.busy)
        return work * max(0.0, (self.placing.actors_here + 1) / self.machines.cpus - 1)

    def _network(self, sent: Traffic) -> float:
        """Questions and replies between machines: the busiest link, and the way there and back."""
        size, machines, placing = self.size, self.machines, self.placing
        if machines.nodes == 1:
            return 0.0
        asked, far = sent.questions, placing.far
        if size.weighting_actors > 1:  # each beside its worker
            mine, elsewhere = float(placing.workers_here), 0.0
        else:
            mine = float(asked)
            elsewhere = 0.0 if asked == 1 else asked * (1 - placing.workers_here / size.workers)
        copies, taken = size.actors * far, placing.actors_here
        if sent.shared:  # each node fetches it once
            copies, taken = min(copies, machines.nodes - 1), 1
        busiest = max(
            mine * sent.replies * far + elsewhere * sent.question,
            mine * copies * sent.question + elsewhere * sent.answer,
            placing.actors_here * asked * sent.reply,
            taken * asked * sent.question,
        )
        hops = 4 if elsewhere else 2
        return 1e3 * busiest / machines.link + hops * machines.latency_us / 1e3

    def _sums(self, strategy: str) -> float:
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
        if self.placing.student_nodes == 1:
            return 1e3 * ring / (self.costs.copy_gb * 1e9)
        return 1e3 * ring / self.machines.link + legs * self.machines.latency_us / 1e3

    def _cores(self, sent: Traffic, served: float, reply: float) -> float:
        """All that the fullest node computes in a step, shared by its cores."""
        size, placing, asked = self.size, self.placing, sent.questions
        weighting = min(size.weighting_actors, placing.workers_here)
        forward = 0.0 if size.actor_gpus else self.busy * max(1, int(size.actor_cpus or 1))
        teaching = placing.actors_here * (self.hosting + forward + asked * reply)
        threads = 1 if size.student_gpus else max(1, int(size.student_cpus))
        learning = placing.workers_here * self.times.step_ms * threads
        work = learning + weighting * served * asked / size.weighting_actors + teaching
        return work / self.machines.cpus

    def memory(self) -> dict[str, float]:
        """See `Forecast.memory`."""
        size, placing = self.size, self.placing
        process = self.costs.process_mb * 1e6
        fleet = size.fleet_memory(process)
        beside = min(size.weighting_actors, placing.workers_here)
        host = fleet["teacher_actor"] - (fleet["teacher_weights"] if size.actor_gpus else 0)
        node = (
            beside * (fleet["weighting_actor"] + fleet["object_store"])
            + placing.actors_here * host
            + placing.workers_here * size.worker_memory(process)
        )
        return {**fleet, "node": node, "there": self.machines.memory_gb * 1e9}

    def recording(self) -> dict[str, float]:
        """See `Forecast.recording`."""
        size, view = self.size, self.size.view_bytes
        forward = self.forward_ms() / 1e3 * size.samples / size.batch
        sealed = view / size.actors / (self.costs.seal_gb * 1e9)
        forward_seconds = size.views * (forward + sealed)
        disk_seconds = size.views * view / (self.machines.disk_mb * 1e6)
        return {
            "seconds": max(forward_seconds, disk_seconds),
            "forward_seconds": forward_seconds,
            "disk_seconds": disk_seconds,
            "bytes": size.views * view,
            "peak_bytes": (size.views + 1) * view,
        }


@dataclass(frozen=True)
class Forecast:
    """What a job would take.

    Attributes:
        setup: the job, with the GPUs that it would have there, and the number of weighting actors
            that the plan chose.
        placing: of its parts on the machines.
        step: live.
        single: the live step with one weighting actor, where there are several.
        replay_ms: a step from records, the mean over the job's students with teachers.
        memory: bytes of the `teacher_actor` with most teachers, its GPU's included, without
            activations, of which `teacher_weights`; of (each) `weighting_actor`; of the
            `object_store` beside it; of all on the fullest `node`; and that are `there` on a node.
        recording: `seconds` of all views in one pass, in `forward_seconds` of which the teachers
            compute, while the disk needs `disk_seconds`; `bytes` of the records, and `peak_bytes`
            on disk while a view is being recorded; None where nothing is recorded.
        whole: seconds of the job: its `start`, epochs `live` and `replayed`, students on labels
            alone (`plain`), `evaluation`, and `verifying` records when they are first read. Where
            that pays, students are side by side.
        spent: seconds of the job by what they are spent on, by the names of `PARTS`.
    """

    setup: JobSize
    placing: Placing
    step: Step
    single: Step | None
    replay_ms: float
    memory: dict[str, float]
    recording: dict[str, float] | None
    whole: dict[str, float]
    spent: dict[str, float]

    @property
    def seconds(self) -> float:
        """Seconds of the whole job."""
        return sum(self.whole.values())

    @property
    def bottleneck(self) -> str:
        """What most of the job is spent on."""
        return max(self.spent, key=self.spent.__getitem__)

    @property
    def recording_bottleneck(self) -> str | None:
        """`teachers` or `disk`; None where nothing is recorded."""
        if self.recording is None:
            return None
        slow_disk = self.recording["disk_seconds"] > self.recording["forward_seconds"]
        return "disk" if slow_disk else "teachers"

    @property
    def shortage(self) -> str | None:
        """What is wanted and not there, in words; None where all has room."""
        wanted, there = self.memory["node"] / 1e9, self.memory["there"] / 1e9
        if self.placing.shortage or wanted <= there:
            return self.placing.shortage
        return f"{wanted:,.0f} GB of memory are wanted on the fullest node, {there:,.0f} are there"


def live_step(size: JobSize, machines: Machines, times: Times, placing: Placing) -> Step:
    """A step of a job as it is placed on machines, taught by the fleet."""
    return _Model(size, machines, times, placing).live_step()


def forecast(
    size: JobSize, machines: Machines, times: Times, weighting_actors: int | None = None
) -> Forecast:
    """What a job would take.

    Args:
        size: of the job.
        machines: that it would have.
        times: of student and teachers, each alone.
        weighting_actors: 1, or one for each worker where the strategies weigh by sample; None
            takes what is worth it.
    """
    size = with_gpus(size, machines)
    placing = place(size, machines)
    model = _Model(replace(size, weighting_actors=1), machines, times, placing)
    single, step = None, model.live_step()
    if size.may_shard and weighting_actors != 1:
        sharded = _Model(replace(size, weighting_actors=size.workers), machines, times, placing)
        several = sharded.live_step()
        if weighting_actors is not None or several.ms < GAIN * step.ms:
            model, single, step = sharded, step, several
    replays = [model.replayed(strategy) for strategy in size.strategies]
    replay = {part: sum(one[part] for one in replays) / len(replays) for part in replays[0]}
    recording = model.recording() if size.records else None
    groups = groups_with_room(size, machines)
    whole, spent = _whole(size, times, step, replay, recording, groups)
    return Forecast(
        setup=model.size,
        placing=placing,
        step=step,
        single=single,
        replay_ms=sum(replay.values()),
        memory=model.memory(),
        recording=recording,
        whole=whole,
        spent=spent,
    )


def _whole(
    size: JobSize,
    times: Times,
    step: Step,
    replay: dict[str, float],
    recording: dict[str, float] | None,
    groups: int,
) -> tuple[dict[str, float], dict[str, float]]:
    """See `Forecast.whole` and `Forecast.spent`."""
    taught, epochs, steps = len(size.strategies), size.epochs, size.steps
    first = size.views if recording else taught * epochs
    live = first * steps * step.ms / 1e3
    spent = {part: share * live for part, share in step.shares.items()}
    if recording and recording["disk_seconds"] > live:
        live = recording["disk_seconds"]
        spent = {"disk": live}
    students, replayed_steps = taught + size.plain, (taught * epochs - first) * steps
    labelled = size.plain * epochs * steps * times.step_ms / 1e3
    evaluated = students * (epochs * size.evaluated + size.evaluated + size.tested)
    evaluation = evaluated * times.step_ms / size.part / 3 / 1e3
    start, replay_ms = times.costs.start_s, sum(replay.values())
    if size.at_once is None and start:  # as `student.shared_work.Pace` decides
        alone = replayed_steps * replay_ms / 1e3 + labelled + evaluation
        groups = min(groups, max(1, math.ceil(alone / (WORTH_STARTS * start))))
    whole = {
        "start": start,
        "live": live,
        "replayed": replayed_steps * replay_ms / 1e3 / groups,
        "plain": labelled / groups,
        "evaluation": evaluation / groups,
        "verifying": size.record_bytes / (times.costs.seal_gb * 1e9),
    }
    for part, ms in replay.items():
        spent[part] = spent.get(part, 0.0) + replayed_steps * ms / 1e3 / groups
    spent["student"] += whole["plain"] + whole["evaluation"]
    spent["reading"] += whole["verifying"]
    return whole, spent
