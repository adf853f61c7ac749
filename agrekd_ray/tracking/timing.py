"""Where the time of a run went, for its end and its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agrekd_ray.results import Effort, Outcome, Span

_SHOWN = 3
"""Backbones that have a line of their own, the slowest first."""


@dataclass(frozen=True)
class Spent:
    """A line of the table.

    Attributes:
        what: took the time.
        span: how often, and how long in all.
        note: what else there is to say.
    """

    what: str
    span: Span
    note: str = ""

    @property
    def each(self) -> float:
        """Milliseconds each time, in the mean."""
        return 1000 * self.span.seconds / self.span.count if self.span.count else 0.0

    @property
    def in_words(self) -> str:
        """As one line: `1,350 × 4.1 ms = 5.5 s`."""
        note = f" ({self.note})" if self.note else ""
        return f"{self.span.count:,} × {self.each:.3g} ms = {self.span.seconds:,.1f} s{note}"


def spent(outcomes: Sequence[Outcome], effort: Effort | None) -> list[Spent]:
    """Where the time went: the students' steps, their guidance, the teachers.

    Args:
        outcomes: finished students.
        effort: of the teachers, where there were any.

    Returns:
        A line each; of many backbones, the slowest ones.
    """
    epochs = [epoch for outcome in outcomes for epoch in outcome.history]
    steps = sum(epoch.steps for epoch in epochs)
    lines = []
    if steps:
        seconds = sum(epoch.seconds for epoch in epochs)
        lines.append(Spent("students' steps", Span(steps, seconds)))
        guided = [e for o in outcomes if o.teachers != "-" for e in o.history]
        asked = sum(epoch.steps for epoch in guided)
        if asked:
            waited = sum(epoch.guidance_seconds for epoch in guided)
            share = waited / max(sum(epoch.seconds for epoch in guided), 1e-9)
            replayed = sum(epoch.replayed_steps for epoch in guided) / asked
            note = f"{share:.0%} of the taught students' time; {replayed:.0%} replayed"
            lines.append(Spent("of them, guidance", Span(asked, waited), note))
    if effort is not None:
        forwards = {k: span for k, span in effort.spans.items() if k.startswith("forward ")}
        slowest = sorted(
            forwards, key=lambda name: -forwards[name].seconds / max(forwards[name].count, 1)
        )
        for name in slowest[:_SHOWN]:
            lines.append(Spent(name, forwards[name]))
        if rest := slowest[_SHOWN:]:
            together = sum((forwards[name] for name in rest), Span())
            lines.append(Spent(f"forward of {len(rest)} others", together))
        for name, what in (("gather", "waiting for teachers"), ("weigh", "weighting")):
            if name in effort.spans:
                again = f"{effort.retries} asked again" if effort.retries else ""
                lines.append(Spent(what, effort.spans[name], again if name == "gather" else ""))
    return lines
