"""What drivers of jobs, studies and searches share: how a run begins, is told of, and ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Generic, TypeVar

from rich.console import Console
from rich.text import Text

from agrekd_ray import __version__
from agrekd_ray.cluster.environment import prepare
from agrekd_ray.cluster.events import Event, TeacherCostSoFar
from agrekd_ray.config import Job
from agrekd_ray.errors import AgrekdError
from agrekd_ray.experiment.account import Account
from agrekd_ray.experiment.display import Display
from agrekd_ray.experiment.engine import Engine, Handle, LocalEngine
from agrekd_ray.experiment.folder import Folder
from agrekd_ray.experiment.monitor import show_progress
from agrekd_ray.experiment.work import Work
from agrekd_ray.tracking.outbox import Outbox
from agrekd_ray.tracking.tracker import FAILED, KILLED, NOTE, WARNINGS, open_tracker

LONGEST_NAME = 120
"""Signs of what was changed, in the name of a run in MLflow."""
PATIENCE_AT_FAILURE = 5.0
"""Seconds that a run which has failed waits for an MLflow that is away."""

Result = TypeVar("Result")


def open_engine(job: Job, handle: Handle) -> Engine:
    """Who does the work of a job.

    Args:
        job: the job.
        handle: gets every event.
    """
    if job.guidance == "local":
        return LocalEngine(job, handle)
    prepare(starts_cluster=job.ray.address is None)
    from agrekd_ray.experiment.ray_engine import RayEngine

    return RayEngine(job, handle)


class Driver(ABC, Generic[Result]):
    """One run of any kind, from its folder to its last line on the screen.

    Args:
        folder: of the run.
        console: for progress and tables.
        job: the job, or the one that is swept or searched.
        name: of the job, study or search.
        tags: further tags of its run in MLflow.
    """

    role = "job"
    """What the run is in MLflow; see `Tracker.start_job`."""

    def __init__(
        self,
        folder: Folder,
        console: Console,
        job: Job,
        name: str,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.console, self.name, self.tags = folder, console, name, tags
        self.display = Display(console)
        tracking = job.tracking  # opened while Ray starts
        self.tracker = open_tracker(tracking.uri, tracking.experiment or job.name, job.runs)
        self.outbox = Outbox(self.warn)
        self.account = Account(folder.path)
        self.unsent = 0
        """Writes that MLflow did not get."""

    def run(self) -> Result:
        """Do what is left of the run.

        Raises:
            AgrekdError: it cannot go on; what is finished stays in the folder.
            KeyboardInterrupt: it was stopped.
        """
        if self.folder.state().status == "finished":
            self.recall()
        try:
            with (
                self.started(),
                self.tracked() as run_id,
                self.account,
            ):
                result = self.through(run_id)
        except AgrekdError:
            if not (self.display.advanced or self.folder.has_made):
                self.folder.withdraw()
            raise
        self.folder.finish()
        self.show(result)
        return result

    @contextmanager
    def tracked(self) -> Iterator[str]:
        """While the block lasts, the run is running in its folder and in MLflow.

        When the block raises, or MLflow's run cannot be opened, both are left in a state that says
        what happened, and it raises on.

        Yields:
            The id of the run in MLflow.
        """
        folder, tracker, outbox = self.folder, self.tracker, self.outbox
        about = {"agrekd.folder": str(folder.path), "agrekd.version": __version__}
        try:
            state = folder.state()
            named = (state.changes[:LONGEST_NAME], self.name, folder.path.name)
            yield tracker.start_job(
                " ".join(filter(None, named)),
                self.params(),
                {**about, **(self.tags or {})},
                state.tracking_run,
                self.role,
                {**state.tags, **({NOTE: state.note} if state.note else {})},
                lambda run_id: folder.update(status="running", tracking_run=run_id, reason=None),
            )
        except BaseException as error:  # nothing here hides the reason
            try:
                state = folder.ended_by(error)
                run_id, reason = state.tracking_run, state.reason or ""
                if run_id is not None and state.status != "finished":
                    status = KILLED if state.status == "interrupted" else FAILED
                    outbox.put(lambda: tracker.fail(run_id, reason, status))
                    outbox.drain(PATIENCE_AT_FAILURE)
            except Exception as second:
                outbox.note(f"could not record that the run ended: {second}")
            raise
        finally:
            outbox.close()

    def recall(self) -> None:
        """Read the results of a run that had come to its end, if they are whole."""

    def started(self) -> AbstractContextManager[None]:
        """What is started before MLflow's run, for both take seconds."""
        return nullcontext()

    @abstractmethod
    def params(self) -> Mapping[str, Any]:
        """Of the run in MLflow."""

    @abstractmethod
    def through(self, run_id: str) -> Result:
        """Everything, from data to MLflow.

        Args:
            run_id: of the run in MLflow.
        """

    @abstractmethod
    def show(self, result: Result) -> None:
        """The end of the run on the screen."""

    def do(self, work: Work, engine: Engine, part: str = "") -> None:
        """Make teachers, ask them, train students: whatever of that is left.

        Args:
            work: what is to be done.
            engine: does it.
            part: of the run, in words; empty where there is one.
        """
        work.make_teachers(engine, self.display, part)
        # Processes that have just trained are asked, for they are warm.
        self.account.add(work.ask(engine, self.display))
        self.asked(work, engine)
        if work.left():
            self.train(work, engine, f"students {part}".strip())

    def asked(self, work: Work, engine: Engine) -> None:
        """The teachers have answered, and students are still to be trained.

        Args:
            work: that they are of.
            engine: that asked them.
        """

    def tag_warnings(self, run_id: str, warnings: Sequence[str]) -> None:
        """Let MLflow say what an ensemble is warned of."""
        if warnings:
            tags = {WARNINGS: "\n".join(warnings)}
            self.outbox.put(lambda: self.tracker.set_tags(run_id, tags))

    def train(self, work: Work, engine: Engine, stage: str, *, mends: bool = True) -> None:
        """Train the students that are left, and raise what a worker said where that fails.

        Args:
            work: that they are of.
            engine: trains them.
            stage: what the progress line calls it.
            mends: whether teachers that prove to be damaged are made again; then they train on.
        """
        try:
            self.account.add(work.train(engine, self.display, stage))
            return
        except AgrekdError as error:
            if not (mends and work.mended(error, engine, self.display)):
                raise
        self.train(work, engine, stage, mends=False)

    def handle(self, event: Event) -> None:
        """One event of an engine."""
        if isinstance(event, TeacherCostSoFar):
            self.account.so_far(event.effort)
        else:
            show_progress(self.display, event)

    def warn(self, text: str) -> None:
        """A line of warning that stays."""
        self.display.note(text, "yellow")

    def publish(self, run_id: str, metrics: Mapping[str, float], description: str) -> None:
        """Give MLflow the run's reports and summary, as `Tracker.finish_job`, and end it there."""
        if note := self.folder.state().note:
            description = f"{note}\n\n{description}"
        self.outbox.put(
            lambda: self.tracker.finish_job(run_id, self.folder.path, metrics, description)
        )

    def say_end(
        self,
        stages: tuple[str, str] = ("", ""),
        spent: Iterable[tuple[str, str]] = (),
        *,
        plots: bool = True,
    ) -> None:
        """Where everything is and what it cost, a line each.

        Args:
            stages: what each stage took, and a heading of that.
            spent: further lines of cost, each with its heading.
            plots: whether their folder is named.
        """
        cost = self.account.cost
        for heading, text in (
            ("finished in", cost.in_words),
            stages,
            ("teachers", cost.effort.in_words if cost.effort else ""),
            *spent,
            ("results", str(self.folder.path)),
            ("plots", str(self.folder.plots) if plots else ""),
            ("MLflow", self.tracker.ui_command()),
        ):
            if text:
                self.console.print(Text(f"{heading:<12}{text}"), soft_wrap=True)
        if self.unsent:
            self.console.print(
                f"MLflow did not get everything: when it answers again, agrekd resume "
                f"{self.folder.path}",
                style="yellow",
                soft_wrap=True,
            )
