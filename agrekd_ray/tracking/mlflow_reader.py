"""Runs out of MLflow.

Of each run only the last values of its metrics are read, a page of runs at a time, so that some
thousand of them take seconds.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from agrekd_ray.errors import TrackingError, listed, near
from agrekd_ray.passwords import without_password
from agrekd_ray.results.metrics import TEACHER_STEPS
from agrekd_ray.results.runs import Child, Row, parsed, rows
from agrekd_ray.tracking.mlflow_experiment import CHANGED
from agrekd_ray.tracking.mlflow_runs import METHOD, ROLE, SEED, TRIAL
from agrekd_ray.tracking.mlflow_store import explained, open_existing
from agrekd_ray.tracking.tracker import PARENT, SEARCHED, STATE, WORLD

MISSING_TEACHERS = "-"
"""As outcomes have it, where nobody taught."""

_PARENTS, _CHILDREN = {"job", "search", "study"}, {"student", "trial"}
_STATUS = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted"}
# The last two follow from others: the weighting from the method, the words from the ensemble.
_NO_SETTINGS = {"method", "seed", "seeds", "distillation.strategy", "teachers"}
# Where teachers and prepared data lie, and who computes, changes no figure.
_NO_WORLD = re.compile(r"teachers\.(store|cpus|gpus)|data\.(.+\.)?(prepared|keep_decoded)")
_PAGE, _IDS_A_QUERY = 1000, 200
_ACTIVE, _ALL = ViewType.ACTIVE_ONLY, ViewType.ALL


@dataclass(frozen=True, eq=False)
class Comparison:
    """What was found.

    Attributes:
        rows: in the order in which their first runs began.
        metrics: names of all metrics that any run has.
        teacher_steps: the teachers' forward passes of all jobs together, in training steps of the
            student; None where no job says.
    """

    rows: list[Row]
    metrics: set[str]
    teacher_steps: float | None


def read(
    uri: str, ids: Sequence[str] = (), experiments: Sequence[str] = (), filter: str | None = None
) -> Comparison:
    """Finds runs and groups them.

    Args:
        uri: MLflow's tracking URI; the store must be there.
        ids: of students and trials; a job's or a search's stands for all its children. Without
            any, all runs count.
        experiments: names of the experiments to look in; all of them without any.
        filter: what the runs must also meet, in MLflow's search language. One that no student or
            trial meets, but jobs or searches do, chooses their children.

    Raises:
        TrackingError: no store, no such experiment or run, a filter that MLflow does not take, or
            nothing found; it says what there is.
    """
    client = open_existing(uri)
    with explained(uri, "read runs"):
        store = _Store(client, uri)
        places = store.experiments(experiments)
        runs = store.selected(places, ids, filter)
        parents = store.parents(places, runs)
    if not runs:
        raise TrackingError(_nothing(store, uri, bool(filter)))
    children = [
        _child(run, parents.get(run.data.tags.get(PARENT, "")), store.names) for run in runs
    ]
    steps = [
        parent.data.metrics[TEACHER_STEPS]
        for parent in parents.values()
        if TEACHER_STEPS in parent.data.metrics
    ]
    return Comparison(
        rows(children),
        {name for child in children for name in child.metrics},
        sum(steps) if steps else None,
    )


class _Store:
    """The runs of one store, asked for in pages."""

    def __init__(self, client: MlflowClient, uri: str) -> None:
        self._client, self._uri = client, uri
        self.names: dict[str, str] = {}

    def experiments(self, wanted: Sequence[str]) -> list[str]:
        """Ids of the experiments, by their names."""
        token = None
        while True:
            page = self._client.search_experiments(max_results=_PAGE, page_token=token)
            self.names |= {str(found.experiment_id): found.name for found in page}
            if not (token := page.token):
                break
        for name in wanted:
            if name not in self.names.values():
                hint = near(name, self.names.values())
                raise TrackingError(
                    f"There is no experiment {name!r} in MLflow at "
                    f"{without_password(self._uri)}.{hint}"
                )
        return [key for key, name in self.names.items() if not wanted or name in wanted]

    def selected(self, places: list[str], ids: Sequence[str], filter: str | None) -> list[Run]:
        """Students and trials that are asked for, in the order in which they began."""
        named = self._named(places, ids) if ids else None
        if named is not None and not filter:
            return named
        try:
            found = list(self._pages(places, filter or ""))
        except MlflowException as error:
            if not filter or error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            words = " ".join(str(error).split())
            raise TrackingError(
                f"MLflow does not take the filter {filter!r}: {words[:300]}\n"
                "Write for instance: params.method = 'agre_kd' and "
                "metrics.`test/accuracy` > 0.3 (backquotes around names with a slash or a dot; "
                "values of params and tags in quotes; `and`, but no `or`)."
            ) from None
        runs = [run for run in found if _role(run) in _CHILDREN]
        if filter and not runs:
            runs = self._children(places, [r.info.run_id for r in found if _role(r) in _PARENTS])
        if named is None:
            return runs
        met = {run.info.run_id for run in runs}
        return [run for run in named if run.info.run_id in met]

    def parents(self, places: list[str], runs: Sequence[Run]) -> dict[str, Run]:
        """Jobs and searches of runs, by id."""
        wanted = dict.fromkeys(run.data.tags[PARENT] for run in runs if PARENT in run.data.tags)
        return {run.info.run_id: run for run in self._by_id(places, list(wanted), _ACTIVE)}

    def _named(self, places: list[str], ids: Sequence[str]) -> list[Run]:
        found = {run.info.run_id: run for run in self._by_id(places, ids, _ALL)}
        for run_id in ids:
            if run_id not in found:
                raise TrackingError(self._unknown(places, run_id))
            run = found[run_id]
            if run.info.lifecycle_stage != "active":
                raise TrackingError(
                    f"Run {run_id} was deleted; `mlflow runs restore --run-id {run_id}` takes it "
                    "back."
                )
            if _role(run) not in _PARENTS | _CHILDREN:
                raise TrackingError(
                    f"Run {run_id} ({run.info.run_name}) is no job, study, search, student or "
                    "trial of agrekd, so there is nothing to compare it by."
                )
        parents = [key for key, run in found.items() if _role(run) in _PARENTS]
        students = [run for run in found.values() if _role(run) in _CHILDREN]
        every = [*students, *self._children(places, parents)]
        return list({run.info.run_id: run for run in every}.values())

    def _unknown(self, places: list[str], run_id: str) -> str:
        """What to say of a run that is not there: people mistype ids, and give names."""
        known: dict[str, str] = {}
        for run in self._pages(places, ""):
            known[run.info.run_id] = run.info.run_id
            if _role(run) in _PARENTS:
                known.setdefault(run.info.run_name, run.info.run_id)
        begins = [name for name in known if run_id and name.startswith(run_id)]
        close = [*begins, *difflib.get_close_matches(run_id, known, 1)]
        hint = f" Did you mean {known[close[0]]}?" if close else ""
        return (
            f"There is no run {run_id!r} in the experiments {listed(map(self.names.get, places))}."
            f"{hint} The pages of MLflow show a run's id."
        )

    def _children(self, places: list[str], parents: Iterable[str]) -> list[Run]:
        # MLflow knows no list of values for a tag, so this is a query for each job.
        found: list[Run] = []
        for parent in parents:
            below = list(self._pages(places, f"tags.`{PARENT}` = '{parent}'"))
            found += [run for run in below if _role(run) in _CHILDREN]
            jobs = [run.info.run_id for run in below if _role(run) in _PARENTS]  # of a study
            found += self._children(places, jobs)
        return found

    def _by_id(self, places: list[str], ids: Sequence[str], view: int) -> Iterator[Run]:
        # A quote cannot be escaped in MLflow's filter, and no id has one.
        plain = [run_id for run_id in ids if run_id.isalnum()]
        for start in range(0, len(plain), _IDS_A_QUERY):
            listed = ", ".join(f"'{run_id}'" for run_id in plain[start : start + _IDS_A_QUERY])
            yield from self._pages(places, f"attributes.run_id IN ({listed})", view)

    def _pages(self, places: list[str], filter: str, view: int = _ACTIVE) -> Iterator[Run]:
        token, seen = None, set()
        while places:
            page = self._client.search_runs(
                places, filter, view, _PAGE, ["attributes.start_time ASC"], token
            )
            for run in page:
                if run.info.run_id not in seen:  # pages shift where runs are deleted meanwhile
                    seen.add(run.info.run_id)
                    yield run
            if not (token := page.token):
                return


def _role(run: Run) -> str:
    return run.data.tags.get(ROLE, "")


def _child(run: Run, parent: Run | None, experiments: Mapping[str, str]) -> Child:
    tags = run.data.tags
    params, above = _params(run), _params(parent) if parent else {}
    number = int(tags[TRIAL]) if _role(run) == "trial" and tags.get(TRIAL, "").isdigit() else None
    seeds = parsed(params.get("seeds" if number is not None else "seed", tags.get(SEED, "")))
    return Child(
        run_id=run.info.run_id,
        parent=tags.get(PARENT, ""),
        job=parent.info.run_name if parent else "",
        searches=parent is not None and _role(parent) == "search",
        experiment=experiments.get(run.info.experiment_id, ""),
        method=f"trial-{number:03}"
        if number is not None
        else params.get("method", tags.get(METHOD, run.info.run_name)),
        number=number,
        seeds=tuple(s for s in (seeds if isinstance(seeds, list) else [seeds]) if type(s) is int),
        teachers=params.get("teachers", MISSING_TEACHERS),
        state=tags.get(STATE, _STATUS.get(run.info.status, "running")),
        settings={
            path: text
            for path, text in params.items()
            if path not in _NO_SETTINGS and not path.startswith(WORLD)
        },
        world={
            path: text
            for path, text in above.items()
            if path.startswith(WORLD) and not _NO_WORLD.fullmatch(path)
        },
        searched=tuple(_listed_tag(tags.get(SEARCHED, ""))),
        metrics=run.data.metrics,
    )


def _params(run: Run) -> dict[str, str]:
    """A run's parameters; what another value was resumed with counts, not what it began with."""
    changed = parsed(run.data.tags.get(CHANGED, ""))
    later = {k: str(v) for k, v in changed.items()} if isinstance(changed, dict) else {}
    return {**run.data.params, **later}


def _listed_tag(text: str) -> list[str]:
    value = parsed(text)
    return [str(path) for path in value] if isinstance(value, list) else []


def _nothing(store: _Store, uri: str, filtered: bool) -> str:
    there = listed(store.names.values())
    what = "meets the filter" if filtered else "is there"
    advice = "Loosen the filter, or look" if filtered else "Run a job first, or look"
    return (
        f"No student and no trial {what} in MLflow at {without_password(uri)}. "
        f"{advice} in another of its experiments: {there}."
    )
