"""What a job takes as a whole: steps, memory, recording, time.

Assumed, besides what `step` assumes:

- The teachers are there: training the pool is not counted.
- The first student with teachers meets the fleet until every view is recorded, no faster than the
  disk takes it in; everything after that is replayed. With `guidance: live`, every step is live.
  Students are trained one after another.
- An evaluation takes a third of a training step for each sample; it is one worker's.
- Actors keep the logits of `(look_ahead + 2) · (workers + 1)` batches. A teacher's activations are
  not known and not counted. Messages above 100 kB are in the object store too, once more.
- A record is written once to a partial file and once whole: a view that is being recorded takes its
  disk twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from agrekd_ray.guidance.lesson import INLINE
from agrekd_ray.planning.messages import FLOAT
from agrekd_ray.planning.placing import Placing, groups_with_room, place, with_gpus
from agrekd_ray.planning.settings import Machines, Times
from agrekd_ray.planning.setup import Setup
from agrekd_ray.planning.step import Step, forward_ms, live_step, replay_parts
from agrekd_ray.student.shared_work import WORTH_STARTS

COPIES = 5
"""Times the gradients' own bytes that weighing takes at its peak: 3.4 to 4.2 by strategy, and what
the allocator keeps."""


@dataclass(frozen=True)
class Memory:
    """Bytes.

    Attributes:
        teacher_actor: of the actor with most teachers, its GPU's included, without activations.
        teacher_weights: of which are weights.
        weighting_actor: of the weighting actor, or each of them.
        object_store: that a step's messages take on the node with the weighting actor.
        node: all of it on the fullest node, where teachers without a GPU are too.
        there: memory of a node.
    """

    teacher_actor: float
    teacher_weights: float
    weighting_actor: float
    object_store: float
    node: float
    there: float

    @property
    def shortage(self) -> str | None:
        """What is wanted and not there, in words; None where all has room."""
        if self.node <= self.there:
            return None
        wanted, there = self.node / 1e9, self.there / 1e9
        return f"{wanted:,.0f} GB of memory are wanted on the fullest node, {there:,.0f} are there"


@dataclass(frozen=True)
class Recording:
    """`agrekd record`, or the first epochs.

    Attributes:
        seconds: of all views in one pass.
        forward_seconds: of which the teachers compute.
        disk_seconds: that the disk needs to take it in, at the same time.
        bytes: of the records.
        peak_bytes: on disk while a view is being recorded.
        bottleneck: `teachers` or `disk`.
    """

    seconds: float
    forward_seconds: float
    disk_seconds: float
    bytes: float
    peak_bytes: float
    bottleneck: str


@dataclass(frozen=True)
class Whole:
    """The job, seconds.

    Attributes:
        start: Ray, actors, Train.
        live: epochs that the fleet teaches.
        replayed: epochs that records teach.
        plain: students on labels alone.
        evaluation: of all students; these three with as many students side by side as pay.
        verifying: records, when they are first read.
        spent: seconds by what they are spent on, by the names of `PARTS`.
    """

    start: float
    live: float
    replayed: float
    plain: float
    evaluation: float
    verifying: float
    spent: dict[str, float]

    @property
    def seconds(self) -> float:
        """In all."""
        parts = (self.start, self.live, self.replayed, self.plain, self.evaluation, self.verifying)
        return sum(parts)


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
        memory: of its processes.
        recording: of the teachers' outputs; None where nothing is recorded.
        whole: the job.
    """

    setup: Setup
    placing: Placing
    step: Step
    single: Step | None
    replay_ms: float
    memory: Memory
    recording: Recording | None
    whole: Whole

    @property
    def bottleneck(self) -> str:
        """What most of the job is spent on."""
        return max(self.whole.spent, key=self.whole.spent.__getitem__)

    @property
    def shortage(self) -> str | None:
        """What is wanted and not there, in words; None where all has room."""
        return self.placing.shortage or self.memory.shortage


GAIN = 0.95
"""A weighting actor for every worker is chosen where the step becomes shorter than this share."""


def forecast(
    setup: Setup, machines: Machines, times: Times, weighting_actors: int | None = None
) -> Forecast:
    """What a job would take.

    Args:
        setup: the job.
        machines: that it would have.
        times: of student and teachers, each alone.
        weighting_actors: 1, or one for each worker where the strategies weigh by sample; None
            takes what is worth it.
    """
    setup = with_gpus(setup, machines)
    placing = place(setup, machines)
    single = replace(setup, weighting_actors=1)
    sharded = replace(setup, weighting_actors=setup.workers)
    one = live_step(single, machines, times, placing)
    chosen, step = single, one
    if setup.may_shard and weighting_actors != 1:
        several = live_step(sharded, machines, times, placing)
        if weighting_actors is not None or several.ms < GAIN * one.ms:
            chosen, step = sharded, several
    replays = [
        replay_parts(chosen, machines, times, placing, strategy) for strategy in chosen.strategies
    ]
    replay = {part: sum(one[part] for one in replays) / len(replays) for part in replays[0]}
    recording = _recording(chosen, machines, times, placing) if setup.records else None
    return Forecast(
        setup=chosen,
        placing=placing,
        step=step,
        single=one if chosen.weighting_actors > 1 else None,
        replay_ms=sum(replay.values()),
        memory=_memory(chosen, machines, times, placing, step),
        recording=recording,
        whole=_whole(chosen, times, step, replay, recording, groups_with_room(chosen, machines)),
    )


def _memory(setup: Setup, machines: Machines, times: Times, placing: Placing, step: Step) -> Memory:
    sent, process = step.traffic, times.costs.process_mb * 1e6
    numbers = sent.samples * setup.classes * FLOAT
    weights = setup.fullest * setup.teacher_bytes
    kept = (setup.look_ahead + 2) * (setup.workers + 1) * len(setup.fullest_names) * numbers
    held = sent.questions / setup.weighting_actors * (sent.question + sent.replies)
    large = [size for size in (sent.question, sent.reply, sent.answer) if size > INLINE]
    stored = 0.0
    if sent.question in large:
        stored += sent.questions * sent.question * 2  # the worker's, and the one for all actors
    if sent.reply in large:
        stored += sent.questions * sent.replies
    if sent.answer in large:
        stored += sent.questions * sent.answer
    stored /= setup.weighting_actors
    teaching = process + weights + kept + sent.question + 2 * sent.reply
    weighting = process + held + COPIES * setup.members * numbers
    beside = min(setup.weighting_actors, placing.workers_here)
    hosts = teaching - weights if setup.actor_gpus else teaching
    learning = placing.workers_here * (process + 4 * setup.student_bytes)
    return Memory(
        teacher_actor=teaching,
        teacher_weights=weights,
        weighting_actor=weighting,
        object_store=stored,
        node=beside * (weighting + stored) + placing.actors_here * hosts + learning,
        there=machines.memory_gb * 1e9,
    )


def _recording(setup: Setup, machines: Machines, times: Times, placing: Placing) -> Recording:
    view = setup.view_bytes
    step = forward_ms(setup, machines, times, placing)
    forward = step / 1e3 * setup.samples / setup.batch
    sealed = view / setup.actors / (times.costs.seal_gb * 1e9)
    forward_seconds = setup.views * (forward + sealed)
    disk_seconds = setup.views * view / (machines.disk_mb * 1e6)
    return Recording(
        seconds=max(forward_seconds, disk_seconds),
        forward_seconds=forward_seconds,
        disk_seconds=disk_seconds,
        bytes=setup.views * view,
        peak_bytes=(setup.views + 1) * view,
        bottleneck="disk" if disk_seconds > forward_seconds else "teachers",
    )


def _whole(
    setup: Setup,
    times: Times,
    step: Step,
    replay: dict[str, float],
    recording: Recording | None,
    room: int,
) -> Whole:
    taught, epochs, steps = len(setup.strategies), setup.epochs, setup.steps
    first = setup.views if recording else taught * epochs
    live = first * steps * step.ms / 1e3
    spent = {part: share * live for part, share in step.shares.items()}
    if recording and recording.disk_seconds > live:
        live = recording.disk_seconds
        spent = {"disk": live}
    replayed = (taught * epochs - first) * steps / 1e3
    plain = setup.plain * epochs * steps * times.step_ms / 1e3
    students = taught + setup.plain
    last = setup.evaluated + setup.tested
    sample_ms = times.step_ms / setup.part / 3
    evaluation = students * (epochs * setup.evaluated + last) * sample_ms / 1e3
    verifying = setup.record_bytes / (times.costs.seal_gb * 1e9)
    if setup.at_once is None and times.costs.start_s:  # as `student.shared_work.Pace` decides
        alone = replayed * sum(replay.values()) + plain + evaluation
        room = min(room, max(1, math.ceil(alone / (WORTH_STARTS * times.costs.start_s))))
    replayed, plain, evaluation = replayed / room, plain / room, evaluation / room
    for part, ms in replay.items():
        spent[part] = spent.get(part, 0.0) + replayed * ms
    spent["student"] += plain + evaluation
    spent["reading"] += verifying
    return Whole(
        start=times.costs.start_s,
        live=live,
        replayed=replayed * sum(replay.values()),
        plain=plain,
        evaluation=evaluation,
        verifying=verifying,
        spent=spent,
    )
