"""The driver's ear, whatever its handlers do."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from agrekd_ray.cluster.channel import Channel
from agrekd_ray.cluster.events import Event, Notice, TeacherDone
from agrekd_ray.errors import RunError
from agrekd_ray.experiment.listener import Listener


class Stream:
    """A channel without Ray; what a test puts into it is taken out."""

    def __init__(self, *events: Any) -> None:
        self.events, self.empty = list(events), threading.Event()

    def take(self) -> list[Any]:
        events, self.events = self.events, []
        for event in events:
            if isinstance(event, Exception):
                raise event
        if not events:
            self.empty.set()
        return events


def listening(stream: Stream, *handles: Any) -> Listener:
    return Listener(stream, handles)  # type: ignore[arg-type]


EVENTS = [TeacherDone("a"), TeacherDone("b"), TeacherDone("c")]


@pytest.mark.parametrize("fault", [OSError(5, "Input/output error"), KeyError("x"), ValueError()])
def test_a_fault_of_a_handler_is_said_once_and_survived(fault: Exception) -> None:
    seen: list[Event] = []
    heard: list[Event] = []

    def broken(event: Event) -> None:
        raise fault

    stream = Stream(*EVENTS)
    with listening(stream, heard.append, broken, seen.append):
        stream.empty.wait()
        stream.events = EVENTS[:1]
    assert seen == [*EVENTS, EVENTS[0]]  # nothing is left in the mailbox
    (note,) = [event for event in heard if isinstance(event, Notice)]
    assert "a fault of the driver at TeacherDone, which costs lines on the screen" in note.text
    assert f"and no result: {type(fault).__name__}: " in note.text
    assert "test_listener.py:" in note.text


def test_a_display_that_fails_is_said_on_the_standard_error(capsys: Any) -> None:
    def broken(event: Event) -> None:
        raise UnicodeEncodeError("ascii", "é", 0, 1, "no such sign")

    with listening(stream := Stream(*EVENTS), broken):
        stream.empty.wait()
    assert capsys.readouterr().err.count("a fault of the driver at TeacherDone") == 1


pytestmark = pytest.mark.usefixtures("usual_signals")


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN])
def test_an_error_that_matters_ends_the_wait_at_once(before: Any) -> None:
    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    def matters(event: Event) -> None:
        raise RunError("the record cannot be read")

    signal.signal(signal.SIGINT, before)
    signal.signal(signal.SIGTERM, stop)
    with (
        pytest.raises(RunError, match="the record cannot be read"),
        listening(Stream(*EVENTS), matters),
    ):
        threading.Event().wait()  # for ever


def test_a_channel_that_is_lost_ends_the_wait() -> None:
    with pytest.raises(ActorDiedError), listening(Stream(ActorDiedError()), print):
        threading.Event().wait()


def test_an_error_outside_the_main_thread_is_raised_at_the_end() -> None:
    raised: list[Exception] = []

    def matters(event: Event) -> None:
        raise RunError("in vain")

    def work() -> None:
        listener = listening(Stream(*EVENTS), matters)
        try:
            with listener:
                listener._thread.join()
        except RunError as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [str(error) for error in raised] == ["in vain"]


def test_an_interruption_and_a_fault_of_the_work_stay_what_they_are() -> None:
    with pytest.raises(KeyboardInterrupt), listening(Stream(*EVENTS), print):
        raise KeyboardInterrupt
    with pytest.raises(RunError, match="work"), listening(Stream(*EVENTS), print):
        raise RunError("of the work")


def test_an_error_that_matters_ends_a_wait_for_ray(ray_session: Any) -> None:
    class Never:
        def come(self) -> None:
            threading.Event().wait()

    def matters(event: Event) -> None:
        raise RunError("the record cannot be read")

    channel = Channel()
    never = ray_session.remote(Never).options(num_cpus=0).remote()
    channel.emit(EVENTS[0])
    try:
        with (
            pytest.raises(RunError, match="the record cannot be read"),
            Listener(channel, [matters]),
        ):
            ray_session.get(never.come.remote())
    finally:
        ray_session.kill(never)
        channel.close()
