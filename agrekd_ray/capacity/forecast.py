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
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any

from pydantic import BeforeValidator

from agrekd_ray.capacity.placing import Machines, Placing, who_is_where, with_gpus
from agrekd_ray.capacity.size import FLOAT, PROCESS, JobSize
from agrekd_ray.core.weighting import STRATEGIES
from agrekd_ray.settings import NonNegative, Positive, Settings, Share
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


def forecast(size: JobSize, machines: Machines, times: Times) -> Forecast:
    """What a job would take.

    Args:
        size: of the job; where it leaves the number of weighting actors open, it has those that
            are worth it.
        machines: that it would have.
        times: of student and teachers, each alone.
    """
    size, groups = with_gpus(size, machines)
    placing, lacking = who_is_where(size, machines)
    lone = replace(size, weighting_actors=1)
    single = Forecast(lone, machines, times, placing, lacking, groups)
    if size.may_shard and size.weighting_actors != 1:
        several = replace(size, weighting_actors=size.workers)
        sharded = replace(single, size=several, single=single)
        if size.weighting_actors is not None or sharded.ms < GAIN * single.ms:
            return sharded
    return single


@dataclass(frozen=True)
class Forecast:
    """What a job would take; where there is no room for it, as if its parts shared what there is.

    Attributes:
        size: of the job, with the GPUs and weighting actors that it would have.
        machines: that it would have.
        times: of student and teachers, each alone.
        placing: who is where.
        no_room: what finds no room on the nodes, in words; empty where all do.
        groups: students that have room side by side once the teachers have gone.
        single: the same with one weighting actor, where there are several.
    """

    size: JobSize
    machines: Machines
    times: Times
    placing: Placing
    no_room: str
    groups: int
    single: Forecast | None = None

    @cached_property
    def shortage(self) -> str | None:
        """What is wanted and not there, in words; None where all has room."""
        node, room = self.memory["node"] / 1e9, self.machines.memory_gb
        if not self.no_room and node > room:
            return f"{node:,.0f} GB of memory are wanted on the fullest node, {room:,.0f} are there"
        return self.no_room or None

    @property
    def _hosting_ms(self) -> float:
        """Milliseconds of a teachers' process for one batch, besides the forward passes."""
        further = (self.size.fullest - 1) * self.times.costs.backbone_ms
        return self.times.inputs_ms + self.times.costs.host_ms + further

    @property
    def _busy_ms(self) -> float:
        """Milliseconds in which the passes of the fullest actor keep its device busy."""
        return self.times.forward_busy * self.times.forward_ms * self.size.fullest

    @cached_property
    def parts(self) -> dict[str, float]:
        """Milliseconds of each part of a step that is taught by the fleet, by names of `PARTS`."""
        size, costs, sent = self.size, self.times.costs, self.size.traffic
        strategy = size.strategies[0]
        in_turn: float = sent.questions / size.shards
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
        crowd = max(0.0, (self.placing.actors_here + 1) / self.machines.cpus - 1)
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

    @property
    def _path_ms(self) -> float:
        """Milliseconds of the parts that follow one another."""
        return sum(self.parts[name] for name in self._followed)

    @cached_property
    def ms(self) -> float:
        """Milliseconds of a live step."""
        return max(self._path_ms, self.parts["teachers"], self.parts["cores"])

    @cached_property
    def shares(self) -> dict[str, float]:
        """What a live step is spent on, as shares by part, which sum to 1."""
        if self.parts["cores"] == self.ms > self._path_ms:
            return {"cores": 1.0}
        if self.size.look_ahead and self.parts["teachers"] == self.ms:
            return {"teachers": 1.0}
        return {name: self.parts[name] / self._path_ms for name in self._followed}

    @property
    def step_bottleneck(self) -> str:
        """The part that holds a live step up."""
        return max(self.shares, key=self.shares.__getitem__)

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
        sent = self.size.traffic
        return 1e3 * (sent.question + sent.replies) * sent.questions / self.size.shards / self.ms

    @cached_property
    def replay(self) -> dict[str, float]:
        """Milliseconds of a step from records by part, the mean over the students with teachers.

        Everything but the sums between workers happens in the student's own process. Records that
        do not fit into half of the memory of its nodes come from the disk, in part.
        """
        size, costs = self.size, self.times.costs
        row = size.members * size.classes * size.number_bytes
        cache = self.machines.memory_gb * 1e9 / 2 * self.placing.student_nodes
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
        crowd = max(1.0, self.placing.actors_here / self.machines.cpus)
        if size.actor_gpus:
            return crowd * self._hosting_ms + self._busy_ms * self.placing.actors_per_gpu + idle
        return crowd * (self._hosting_ms + self._busy_ms) + idle

    def _network_ms(self) -> float:
        """Questions and replies between machines: the busiest link, and the way there and back."""
        size, sent, placing = self.size, self.size.traffic, self.placing
        nodes = self.machines.nodes
        if nodes == 1:
            return 0.0
        asked, far = sent.questions, placing.far
        if size.shards > 1:  # each beside its worker
            mine, elsewhere = float(placing.workers_here), 0.0
        else:
            mine = float(asked)
            elsewhere = 0.0 if asked == 1 else asked * (1 - placing.workers_here / size.workers)
        copies: float = size.actors * far
        taken = placing.actors_here
        if sent.shared:  # each node fetches it once
            copies, taken = min(copies, nodes - 1), 1
        busiest = max(
            mine * sent.replies * far + elsewhere * sent.question,
            mine * copies * sent.question + elsewhere * sent.answer,
            placing.actors_here * asked * sent.reply,
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
        if self.placing.student_nodes == 1:
            return self.times.costs.copy_ms(ring)
        return self._between_nodes_ms(ring, legs)

    def _between_nodes_ms(self, size: float, legs: int) -> float:
        """Milliseconds of so many bytes over one link, and of the ways from node to node."""
        link = self.machines.gbit * 1e9 / 8
        return 1e3 * size / link + legs * self.machines.latency_us / 1e3

    def _cores_ms(self, served: float, reply: float) -> float:
        """All that the fullest node computes in a step, shared by its cores."""
        size, asked = self.size, self.size.traffic.questions
        forward = 0.0 if size.actor_gpus else self._busy_ms * max(1, int(size.actor_cpus or 1))
        teaching = self._hosting_ms + forward + asked * reply
        threads = 1 if size.student_gpus else max(1, int(size.student_cpus))
        learning, weighting = self.times.step_ms * threads, served * asked / size.shards
        return self._fullest(learning, weighting, teaching) / self.machines.cpus

    def _fullest(self, worker: float, weighting: float, actor: float) -> float:
        """What the fullest node has of something, of which each process has so much.

        A lone weighting actor is beside the first worker, several are beside a worker each.
        """
        return max(
            workers * worker + min(self.size.shards, workers) * weighting + actors * actor
            for workers, actors in self.placing.loads
        )

    @cached_property
    def memory(self) -> dict[str, float]:
        """Bytes of each kind of process, as `JobSize.memory`, and of all on the fullest `node`."""
        each = self.size.memory(self.times.costs.process_mb * 1e6)
        on_gpu = each["teacher_weights"] if self.size.actor_gpus else 0.0
        weighting = each["weighting_actor"] + each["object_store"]
        node = self._fullest(each["worker"], weighting, each["teacher_actor"] - on_gpu)
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
        sealed = view / size.actors / (self.times.costs.seal_gb * 1e9)
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

    @cached_property
    def whole(self) -> dict[str, float]:
        """Seconds of the job, part by part; where that pays, students are side by side.

        Its `start`, epochs `live` and `replayed`, students on labels alone (`plain`), `evaluation`,
        and `verifying` records when they are first read.
        """
        size, step_ms, start = self.size, self.times.step_ms, self.times.costs.start_s
        taught, epochs = len(size.strategies), size.epochs
        live_epochs = size.views if size.records else taught * epochs
        live = live_epochs * size.steps * self.ms / 1e3
        replayed = (taught * epochs - live_epochs) * size.steps * self.replay_ms / 1e3
        plain = size.plain * epochs * size.steps * step_ms / 1e3
        # An evaluation takes a third of a training step for each sample.
        evaluation = (taught + size.plain) * size.evaluated * step_ms / size.part / 3 / 1e3
        groups = self.groups
        if size.at_once is None and start:  # as `student.shared_work.Pace` decides
            alone = replayed + plain + evaluation
            groups = min(groups, max(1, math.ceil(alone / (WORTH_STARTS * start))))
        return {
            "start": start,
            "live": max(live, self.recording["disk_seconds"]) if self.recording else live,
            "replayed": replayed / groups,
            "plain": plain / groups,
            "evaluation": evaluation / groups,
            "verifying": size.record_bytes / (self.times.costs.seal_gb * 1e9),
        }

    @cached_property
    def spent(self) -> dict[str, float]:
        """Seconds of the job by what they are spent on, by the names of `PARTS`."""
        whole, recording = self.whole, self.recording
        waits_for_disk = recording is not None and recording["disk_seconds"] == whole["live"]
        live = {"disk": 1.0} if waits_for_disk else self.shares
        spent = defaultdict(float, {part: share * whole["live"] for part, share in live.items()})
        for part, ms in self.replay.items():
            spent[part] += whole["replayed"] * ms / self.replay_ms
        spent["student"] += whole["plain"] + whole["evaluation"]
        spent["reading"] += whole["verifying"]
        return dict(spent)

    @property
    def seconds(self) -> float:
        """Seconds of the whole job."""
        return sum(self.whole.values())

    @property
    def bottleneck(self) -> str:
        """What most of the job is spent on."""
        return max(self.spent, key=self.spent.__getitem__)
