"""What Ray's own metrics show of a run: Prometheus reads them from every node.

Ray exports them where it is installed with its dashboard (`ray[default]`); elsewhere they cost
some microseconds a step and go nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge, Histogram

from agrekd_ray.results import Epoch, Span

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Upper ends of the histograms' bins."""


class TeacherMeter:
    """Of a teacher's actor."""

    def __init__(self) -> None:
        self._seconds = Histogram(
            "agrekd_teacher_forward_seconds",
            "A forward pass of a teacher's backbone, with all heads on it.",
            boundaries=list(SECONDS),
            tag_keys=("teachers",),
        )
        self._before: dict[str, Span] = {}

    def observe(self, spans: Mapping[str, Span]) -> None:
        """What the forward passes have taken so far, by `forward NAMES`."""
        for name, span in spans.items():
            before = self._before.get(name, Span())
            if passes := span.count - before.count:
                each = (span.seconds - before.seconds) / passes
                tags = {"teachers": name.removeprefix("forward ")}
                for _ in range(passes):
                    self._seconds.observe(each, tags)
        self._before = dict(spans)


class WeightingMeter:
    """Of the weighting actor."""

    def __init__(self) -> None:
        self._depth = Gauge(
            "agrekd_requests_waiting", "Requests that students have asked and wait for."
        )
        self._wait = Histogram(
            "agrekd_teacher_wait_seconds",
            "From a request to the answer of the last teacher.",
            boundaries=list(SECONDS),
        )
        self._weigh = Histogram(
            "agrekd_weighting_seconds", "Weighting of one answer.", boundaries=list(SECONDS)
        )
        self._retries = Counter(
            "agrekd_retries", "Requests that were sent again, since an actor had died."
        )
        self._waiting, self._retried = 0, 0

    def asked(self) -> None:
        """A request has come."""
        self._waiting += 1
        self._depth.set(self._waiting)

    def answered(self) -> None:
        """It has been answered, or has failed."""
        self._waiting -= 1
        self._depth.set(self._waiting)

    def observe(self, spans: Mapping[str, Span], retries: int) -> None:
        """What one answer has taken, and all retries so far."""
        self._wait.observe(spans["gather"].seconds)
        self._weigh.observe(spans["weigh"].seconds)
        if retries > self._retried:
            self._retries.inc(retries - self._retried)
            self._retried = retries


class StudentMeter:
    """Of a student's first worker.

    Args:
        student: its name.
    """

    def __init__(self, student: str) -> None:
        keys = ("student",)
        self._tags = {"student": student}
        self._step = Gauge(
            "agrekd_step_seconds", "A training step, in the mean of an epoch.", tag_keys=keys
        )
        self._guidance = Gauge(
            "agrekd_guidance_seconds", "Of it, what the teachers or their records take.", keys
        )
        self._replay = Gauge(
            "agrekd_replay_share", "Of an epoch's steps, those out of records; 0 to 1.", keys
        )

    def observe(self, epoch: Epoch) -> None:
        """An epoch is over."""
        steps = max(epoch.steps, 1)
        self._step.set(epoch.seconds / steps, self._tags)
        self._guidance.set(epoch.guidance_seconds / steps, self._tags)
        self._replay.set(epoch.replayed_steps / steps, self._tags)
