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
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from agrekd_ray.capacity.costs import Times
from agrekd_ray.capacity.placing import Machines, Placing, who_is_where, with_gpus
from agrekd_ray.capacity.size import FLOAT, JobSize
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

    def _parts(self) -> dict[str, float]:
        """Milliseconds of each part of a step that is taught by the fleet, by names of `PARTS`."""
        size, times, costs, sent = self.size, self.times, self.times.costs, self.size.traffic
        strategy, requests = size.strategies[0], sent.requests
        called = costs.call_ms + (size.actors - 1) * costs.actor_ms
        asked = sent.request * (1 + (1 if sent.shared else size.actors))
        copied = costs.copy_ms(asked + sent.replies + sent.answer)
        weighed = costs.weigh(strategy, size.members, sent.samples, size.classes)
        reply = costs.reply(size.fullest_members, sent.samples, size.classes)
        served = called + copied + weighed
        in_turn, replying = requests / size.shards, 1
        if in_turn * served + reply < served + requests * reply:
            # The weighting actor's work is hidden behind the answers to the requests before.
            in_turn, replying = 1.0, requests
        # Of the fullest actor's forward passes: what one leaves its device idle for, backbones
        # share as `concurrent` says; what it is busy with, they do in turn.
        idle = (1 - times.forward_busy) * times.forward_ms * -(-size.fullest // size.concurrent)
        busy = times.forward_busy * times.forward_ms * size.fullest
        on_gpu, on_cores = busy * self.placing.actors_per_gpu, 0.0
        if not size.actor_gpus:
            on_gpu, on_cores = 0.0, busy
        hosting = times.inputs_ms + times.costs.host_ms + (size.fullest - 1) * costs.backbone_ms
        # Actors on a node start together and share its cores: on their next batch as a request
        # arrives, beside the path, which is one more.
        actors, cores = self.placing.actors_here, self.machines.cpus
        computing = hosting + on_cores
        all_cores = self._fullest(
            times.step_ms * (1 if size.student_gpus else max(1, int(size.student_cpus))),
            served * requests / size.shards,
            hosting + on_cores * max(1, int(size.actor_cpus or 1)) + requests * reply,
        )
        return {
            "student": times.step_ms,
            "teachers": max(1.0, actors / cores) * computing + on_gpu + idle,
            "gradients": replying * reply,
            "crowding": computing * max(0.0, (actors + 1) / cores - 1) if size.look_ahead else 0.0,
            "messages": in_turn * called,
            "bytes": in_turn * copied,
            "weighting": in_turn * weighed,
            "network": self._network_ms() + self._sums_ms(strategy),
            "cores": all_cores / cores,
        }

    @cached_property
    def step(self) -> dict[str, Any]:
        """A live step: its `ms` and `parts`, its `bottleneck`, and its `traffic`.

        `shares`, which sum to 1, say what it is spent on. `teacher_idle` and `student_waits` are
        those of it in which the busiest teachers' device, and the student, wait; `into_weighting`
        are bytes a second into each weighting actor.
        """
        size, sent, parts = self.size, self.size.traffic, self._parts()
        path = {name: parts[name] for name in PATH}
        if not size.look_ahead:
            path["teachers"] = parts["teachers"]
        in_all, asked = sum(path.values()), sent.requests / size.shards
        ms = max(in_all, parts["teachers"], parts["cores"])
        shares = {name: part / in_all for name, part in path.items()}
        if parts["cores"] == ms > in_all:
            shares = {"cores": 1.0}
        elif size.look_ahead and parts["teachers"] == ms:
            shares = {"teachers": 1.0}
        return {
            "ms": ms,
            "parts": parts,
            "shares": shares,
            "teacher_idle": 1 - parts["teachers"] / ms,
            "student_waits": 1 - parts["student"] / ms,
            "into_weighting": 1e3 * (sent.request + sent.replies) * asked / ms,
            "bottleneck": _largest(shares),
            "traffic": asdict(sent),
        }

    @property
    def ms(self) -> float:
        """Milliseconds of a live step."""
        return self.step["ms"]

    @cached_property
    def replay(self) -> dict[str, float]:
        """Milliseconds of a step from records by part, the mean over the students with teachers.

        Everything but the sums between workers happens in the student's own process. Records that
        do not fit into half of the memory of its nodes come from the disk, in part.
        """
        size, costs = self.size, self.times.costs
        recorded, row = (size.members * n for n in (size.answer_bytes, FLOAT * size.classes))
        cache = self.machines.memory_gb * 1e9 / 2 * self.placing.student_nodes
        missed = max(0.0, 1 - cache / max(1, size.record_bytes))
        from_disk = self._written_s(missed * recorded * size.batch) * 1e3
        whole = defaultdict[str, float](float)
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

    def _network_ms(self) -> float:
        """Requests and replies between machines: the busiest link, and the way there and back."""
        size, sent, placing = self.size, self.size.traffic, self.placing
        nodes = self.machines.nodes
        if nodes == 1:
            return 0.0
        asked, far = sent.requests, placing.far
        mine, elsewhere = float(asked), 0.0
        if size.shards > 1:  # each beside its worker
            mine = placing.workers_here
        elif asked > 1:
            elsewhere = asked * (1 - placing.workers_here / size.workers)
        copies: float = size.actors * far
        taken = placing.actors_here
        if sent.shared:  # each node fetches it once
            copies, taken = min(copies, nodes - 1), 1
        busiest = max(
            mine * sent.replies * far + elsewhere * sent.request,
            mine * copies * sent.request + elsewhere * sent.answer,
            placing.actors_here * asked * sent.reply,
            taken * asked * sent.request,
        )
        return self._between_nodes_ms(busiest, 4 if elsewhere else 2)

    def _sums_ms(self, strategy: str) -> float:
        """Between the student's workers: gradients in a ring; logits, answer of whole batches."""
        size, workers = self.size, self.size.workers
        if workers == 1:
            return 0.0
        ring, legs = 2 * (workers - 1) / workers * size.student_bytes, 2 * (workers - 1)
        if size.gathers(strategy):
            logits = (workers - 1) * size.part * size.classes
            packed = size.batch * (size.classes + 2 * size.teachers + 2)
            ring, legs = ring + (logits + packed) * FLOAT, legs + 2 * workers
        if self.placing.student_nodes == 1:
            return self.times.costs.copy_ms(ring)
        return self._between_nodes_ms(ring, legs)

    def _between_nodes_ms(self, size: float, legs: int) -> float:
        """Milliseconds of so many bytes over one link, and of the ways from node to node."""
        link = self.machines.gbit * 1e9 / 8
        return 1e3 * size / link + legs * self.machines.latency_us / 1e3

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

    def _written_s(self, size: float) -> float:
        return size / (self.machines.disk_mb * 1e6)

    def _sealed_s(self, size: float) -> float:
        return size / (self.times.costs.seal_gb * 1e9)

    @cached_property
    def recording(self) -> dict[str, Any] | None:
        """`seconds` in which all views are recorded in one pass; None where nothing is.

        The teachers compute in `forward_seconds` of them, while the disk needs `disk_seconds`; the
        longer is the `bottleneck`, `teachers` or `disk`. The records have `bytes`, and `peak_bytes`
        on disk while a view is being recorded.
        """
        size, view = self.size, self.size.view_bytes
        if not size.records:
            return None
        forward = self.step["parts"]["teachers"] / 1e3 * size.samples / size.batch
        forward_seconds = size.views * (forward + self._sealed_s(view / size.actors))
        disk_seconds = self._written_s(size.record_bytes)
        return {
            "seconds": max(forward_seconds, disk_seconds),
            "forward_seconds": forward_seconds,
            "disk_seconds": disk_seconds,
            "bytes": size.record_bytes,
            "peak_bytes": size.record_bytes + view,
            "bottleneck": "disk" if disk_seconds > forward_seconds else "teachers",
        }

    @cached_property
    def _spent(self) -> dict[str, dict[str, float]]:
        """Seconds of every phase of the job by what they are spent on, by the names of `PARTS`.

        Epochs `live` and `replayed`, students on labels alone (`plain`), `evaluation`, and
        `verifying` records when they are first read; where that pays, students are side by side.
        """
        size, times, start = self.size, self.times, self.times.costs.start_s
        taught, epoch_s = len(size.strategies), size.steps / 1e3
        live_epochs = size.views if size.records else taught * size.epochs
        live_s, disk_s = live_epochs * epoch_s * self.ms, 0.0
        if self.recording:
            disk_s = self.recording["disk_seconds"]
        replays = (taught * size.epochs - live_epochs) * epoch_s
        # An evaluation takes a third of a training step for each sample; workers share it.
        evaluated = (taught + size.plain) * size.evaluated / size.batch / 3 / 1e3
        alone = {
            "replayed": {part: replays * ms for part, ms in self.replay.items()},
            "plain": {"student": size.plain * size.epochs * epoch_s * times.step_ms},
            "evaluation": {"student": evaluated * times.step_ms},
        }
        groups = self.groups
        if size.at_once is None and start:  # as `student.shared_work.Pace` decides
            seconds = sum(sum(parts.values()) for parts in alone.values())
            groups = min(groups, max(1, math.ceil(seconds / (WORTH_STARTS * start))))
        shares = {"disk": 1.0} if disk_s >= live_s else self.step["shares"]
        return {
            "live": {part: share * max(live_s, disk_s) for part, share in shares.items()},
            **{phase: {part: s / groups for part, s in by.items()} for phase, by in alone.items()},
            "verifying": {"reading": self._sealed_s(size.record_bytes)},
        }

    @property
    def whole(self) -> dict[str, float]:
        """Seconds of the job, part by part: its `start`, and the phases."""
        phases = {phase: sum(parts.values()) for phase, parts in self._spent.items()}
        return {"start": self.times.costs.start_s, **phases}

    @cached_property
    def spent(self) -> dict[str, float]:
        """Seconds of the job by what they are spent on, by the names of `PARTS`."""
        spent = defaultdict[str, float](float)
        for parts in self._spent.values():
            for part, seconds in parts.items():
                spent[part] += seconds
        return dict(spent)

    @property
    def seconds(self) -> float:
        """Seconds of the whole job."""
        return sum(self.whole.values())

    @property
    def recording_seconds(self) -> float | None:
        """As `recording` has them."""
        return self.recording["seconds"] if self.recording else None

    @property
    def bottleneck(self) -> str:
        """What most of the job is spent on."""
        return _largest(self.spent)


def _largest(amounts: Mapping[str, float]) -> str:
    return max(amounts, key=amounts.__getitem__)
