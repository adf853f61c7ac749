"""What a run shows while it is under way."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from agrekd_ray.experiment.display import Display

ERASED = "\x1b[1A\x1b[2K"
"""What a terminal is told to take a line away: one up, erase."""


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(
    ("total", "unit", "shown"), [(0, "", None), (3, "epochs", "0/3"), (1, "models", "0/1")]
)
def test_a_stage_has_a_count_where_it_counts_something(
    terminal: bool, total: int, unit: str, shown: str | None
) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=120, force_terminal=terminal, color_system=None)
    with Display(console) as display:
        display.stage("start", total, unit)
    text = screen.getvalue()
    assert "start" in text
    assert (shown or "/") in text if shown else "/" not in text
    assert all(line == line.rstrip() for line in text.splitlines()) or terminal


def test_on_a_terminal_no_line_of_progress_stays_behind() -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=120, force_terminal=True, color_system=None)
    with Display(console) as display:
        display.stage("students", 3, "epochs")
        display.advance("one")
        display.note("a note")
    assert "a note" in screen.getvalue()
    assert screen.getvalue().endswith(ERASED)


def test_a_narrow_terminal_has_room_for_what_was_done_last() -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=80, force_terminal=True, color_system=None)
    words = "agre_kd-seed-0 epoch 30/30, loss 0.512, val accuracy 81.2%, worst group 40.0%"
    with Display(console) as display:
        display.stage("students", 1200, "epochs")
        display.advance("another", 1)
        display.advance(words, 27)
    assert f"  {words}" in screen.getvalue()
    assert "28/1200" in screen.getvalue()
    assert " left" in screen.getvalue()
