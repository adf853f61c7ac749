"""How long one step takes, live and replayed: a closed form, without queues that vary.

The shape of a live step, for W workers that step together:

    path     = student + messages + bytes + weighting + gradients + crowding + network
    teachers = inputs and forward passes of the busiest actor or GPU
    cores    = all work on the fullest node, shared by its cores

With look-ahead the teachers compute the coming batches meanwhile, and a step takes the largest of
the three; without, it takes path + teachers, and no less than cores. Assumed:

- Workers step together, so that all ask at once; a weighting actor serves one after another, and
  so does a teachers' actor, each while the other is at the next question.
- A forward pass, and opening its inputs, takes a time that is proportional to its samples.
- Times do not vary. Where path and teachers are close, a real step takes somewhat longer.
- An actor's backbones take turns, `concurrent` at a time, in what leaves their device idle; in
  what keeps it busy (`forward_busy`), all take turns that share it. Actors share a node's cores.
- With look-ahead, actors start on a coming batch as a question arrives; where a node has fewer
  cores than actors and one for the path, that holds the answer up by its share of the cores.
- What goes over the network is sent at the bandwidth of one link, the busiest; it overlaps with
  nothing. Workers' gradients are summed in a ring, after the backward pass.
- Every message is copied by the weighting actor once, at `copy_gb`; a question is sent to every
  actor, so it is copied once for each. One above `INLINE` lies in the object store, copied once
  for all of a node.
"""

from __future__ import annotations

from dataclasses import dataclass

from agrekd_ray.guidance.lesson import INLINE
from agrekd_ray.planning.messages import FLOAT, answer_bytes, question_bytes, replies_bytes
from agrekd_ray.planning.placing import Placing
from agrekd_ray.planning.settings import Machines, Times
from agrekd_ray.planning.setup import Setup

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


@dataclass(frozen=True)
class Traffic:
    """Bytes of one question and what follows it.

    Attributes:
        question: to the weighting actor, and from there to each teachers' actor.
        replies: of all actors together.
        reply: of the actor with most teachers.
        answer: back to the student.
        questions: that the workers ask in a step.
        samples: of a question.
    """

    question: int
    replies: int
    reply: int
    answer: int
    questions: int
    samples: int

    @property
    def shared(self) -> bool:
        """Whether a question is one object that all actors read."""
        return self.question > INLINE


@dataclass(frozen=True)
class Step:
    """One step.

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


def traffic(setup: Setup) -> Traffic:
    """Bytes of a step's messages."""
    whole = setup.whole_batch
    samples = setup.batch if whole else setup.part
    shape = samples, setup.classes
    heads = (setup.actors - 1) * replies_bytes((), 0, 0, entropy=False)
    return Traffic(
        question=question_bytes(setup.names, *shape, setup.look_ahead),
        replies=replies_bytes(setup.names, *shape, entropy=setup.entropy) + heads,
        reply=replies_bytes(setup.fullest_names, *shape, entropy=setup.entropy),
        answer=answer_bytes(setup.teachers, *shape),
        questions=1 if whole else setup.workers,
        samples=samples,
    )


def forward_ms(setup: Setup, machines: Machines, times: Times, placing: Placing) -> float:
    """Inputs and forward passes of a step on the busiest actor or GPU.

    What a pass leaves its device idle for, backbones of an actor share as `concurrent` says; what
    it is busy with, they do in turn. Actors on one node start together and share its cores.
    """
    busy = times.forward_busy * times.forward_ms * setup.fullest
    idle = (1 - times.forward_busy) * times.forward_ms * -(-setup.fullest // setup.concurrent)
    hosting = _hosting(setup, times)
    crowd = max(1.0, placing.actors_here / machines.cpus)
    if setup.actor_gpus:
        return crowd * hosting + busy * placing.actors_per_gpu + idle
    return crowd * (hosting + busy) + idle


def _hosting(setup: Setup, times: Times) -> float:
    """Work of a teachers' process for one batch, besides the forward passes."""
    further = (setup.fullest - 1) * times.costs.backbone_ms
    return times.inputs_ms + times.costs.host_ms + further


def _crowding(setup: Setup, machines: Machines, times: Times, placing: Placing) -> float:
    """How long an answer is held up by teachers that start on their next batch meanwhile.

    All that run on a node get the same share of its cores; the path is one of them.
    """
    if setup.look_ahead == 0:
        return 0.0
    work = _hosting(setup, times)
    if not setup.actor_gpus:
        work += times.forward_busy * times.forward_ms * setup.fullest
    return work * max(0.0, (placing.actors_here + 1) / machines.cpus - 1)


def live_step(setup: Setup, machines: Machines, times: Times, placing: Placing) -> Step:
    """A step that is taught by the fleet."""
    costs, sent = times.costs, traffic(setup)
    in_turn = sent.questions / setup.weighting_actors
    copies = 1 if sent.shared else setup.actors
    through = sent.question * (1 + copies) + sent.replies + sent.answer
    copied = 1e3 * through / (costs.copy_gb * 1e9)
    weighed = costs.weigh(setup.strategy, setup.members, sent.samples, setup.classes)
    called = costs.call_ms + (setup.actors - 1) * costs.actor_ms
    reply = costs.reply(len(setup.fullest_names), sent.samples, setup.classes)
    served = called + copied + weighed
    replying = sent.questions
    if in_turn * served + reply >= served + sent.questions * reply:
        replying = 1  # hidden behind the weighting actor's work on the questions before
    else:
        in_turn = 1.0
    parts = {
        "student": times.step_ms,
        "teachers": forward_ms(setup, machines, times, placing),
        "gradients": replying * reply,
        "crowding": _crowding(setup, machines, times, placing),
        "messages": in_turn * called,
        "bytes": in_turn * copied,
        "weighting": in_turn * weighed,
        "network": _network(setup, machines, placing, sent)
        + _sums(setup, machines, times, placing, setup.strategy),
        "cores": _cores(setup, machines, times, placing, served, reply),
    }
    path = sum(parts[name] for name in PATH)
    if setup.look_ahead == 0:
        path += parts["teachers"]
    ms = max(path, parts["teachers"], parts["cores"])
    if parts["cores"] == ms and parts["cores"] > path:
        bottleneck = "cores"
    elif setup.look_ahead == 0:
        bottleneck = max((*PATH, "teachers"), key=parts.__getitem__)
    elif parts["teachers"] == ms:
        bottleneck = "teachers"
    else:
        bottleneck = max(PATH, key=parts.__getitem__)
    into = (sent.question + sent.replies) * sent.questions / setup.weighting_actors
    return Step(
        ms=ms,
        parts=parts,
        bottleneck=bottleneck,
        teacher_idle=1 - parts["teachers"] / ms,
        student_waits=1 - parts["student"] / ms,
        into_weighting=1e3 * into / ms,
        traffic=sent,
    )


def replay_parts(
    setup: Setup, machines: Machines, times: Times, placing: Placing, strategy: str
) -> dict[str, float]:
    """Milliseconds of the parts of a step that is taught from records, one after another.

    Everything but the sums between workers happens in the student's own process. Records that do
    not fit into half of the memory of its nodes come from the disk, in part.
    """
    costs = times.costs
    samples = setup.batch if setup.gathers(strategy) else setup.part
    numbers = setup.members * samples * setup.classes
    cache = machines.memory_gb * 1e9 / 2 * placing.student_nodes
    missed = max(0.0, 1 - cache / max(1, setup.record_bytes))
    from_disk = missed * setup.members * setup.batch * setup.classes * setup.number_bytes
    return {
        "student": times.step_ms,
        "reading": 1e3 * numbers * setup.number_bytes / (costs.copy_gb * 1e9)
        + 1e3 * from_disk / (machines.disk_mb * 1e6),
        "weighing": costs.reply(setup.members, samples, setup.classes)
        + costs.weigh(strategy, setup.members, samples, setup.classes),
        "network": _sums(setup, machines, times, placing, strategy),
    }


def _network(setup: Setup, machines: Machines, placing: Placing, sent: Traffic) -> float:
    """Questions and replies between machines: the busiest link, and the way there and back."""
    if machines.nodes == 1:
        return 0.0
    asked, far = sent.questions, placing.far
    if setup.weighting_actors > 1:  # each beside its worker
        mine, elsewhere = float(placing.workers_here), 0.0
    else:
        mine = float(asked)
        elsewhere = 0.0 if asked == 1 else asked * (1 - placing.workers_here / setup.workers)
    into = mine * sent.replies * far + elsewhere * sent.question
    copies, taken = setup.actors * far, placing.actors_here
    if sent.shared:  # each node fetches it once
        copies, taken = min(copies, machines.nodes - 1), 1
    out = mine * copies * sent.question + elsewhere * sent.answer
    replied, told = placing.actors_here * asked * sent.reply, taken * asked * sent.question
    busiest = max(into, out, replied, told)
    hops = 4 if elsewhere else 2
    return 1e3 * busiest / _rate(machines) + hops * machines.latency_us / 1e3


def _sums(setup: Setup, machines: Machines, times: Times, placing: Placing, strategy: str) -> float:
    """Between the student's workers: gradients in a ring; logits and answer of whole batches."""
    workers = setup.workers
    if workers == 1:
        return 0.0
    ring = 2 * (workers - 1) / workers * setup.student_bytes
    legs = 2 * (workers - 1)
    if setup.gathers(strategy):
        logits = (workers - 1) * setup.part * setup.classes * FLOAT
        packed = setup.batch * (setup.classes + 2 * setup.teachers + 2) * FLOAT
        ring, legs = ring + logits + packed, legs + 2 * workers
    if placing.student_nodes == 1:
        return 1e3 * ring / (times.costs.copy_gb * 1e9)
    return 1e3 * ring / _rate(machines) + legs * machines.latency_us / 1e3


def _cores(
    setup: Setup,
    machines: Machines,
    times: Times,
    placing: Placing,
    served: float,
    reply: float,
) -> float:
    """All that the fullest node computes in a step, shared by its cores."""
    asked = 1 if setup.whole_batch else setup.workers
    weighting = min(setup.weighting_actors, placing.workers_here)
    forward = 0.0
    if not setup.actor_gpus:
        threads = max(1, int(setup.actor_cpus or 1))
        forward = times.forward_busy * times.forward_ms * setup.fullest * threads
    teaching = placing.actors_here * (_hosting(setup, times) + forward + asked * reply)
    threads = 1 if setup.student_gpus else max(1, int(setup.student_cpus))
    learning = placing.workers_here * times.step_ms * threads
    work = learning + weighting * served * asked / setup.weighting_actors + teaching
    return work / machines.cpus


def _rate(machines: Machines) -> float:
    """Bytes a second of a link."""
    return machines.gbit * 1e9 / 8
