"""What finished models say to the splits that nobody trains on."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from agrekd_ray.data import SELECT, TEST
from agrekd_ray.errors import CheckpointError, DataError, RunError
from agrekd_ray.experiment.display import Display
from agrekd_ray.experiment.engine import LocalEngine
from agrekd_ray.experiment.eval_logits import Answers, members
from agrekd_ray.experiment.plan import make_plan
from agrekd_ray.models import load, save
from agrekd_ray.teachers import Asked, Pool
from agrekd_ray.training import evaluate, predict

from .shared import pool_of


def silent() -> Display:
    return Display(Console(file=io.StringIO()))


def unexpected(*told: Any) -> None:
    raise AssertionError(told)


def test_models_are_asked_once_and_vote(make_job: Any) -> None:
    job = make_job(guidance="local")
    data, checkpoints, drawn = pool_of(job)
    models = make_plan(job).answering(Pool(job.teachers.store, data))
    assert set(models) == set(checkpoints.values())
    answers, engine = Answers(job, data), LocalEngine(job, unexpected)
    asked = answers.missing(models)
    assert [one.splits for one in asked] == [(SELECT, TEST)] * len(models)
    assert answers.complete(asked, engine, silent()) == 2 * len(models)
    assert answers.missing(models) == []
    assert not job.outputs.store.exists()  # one process keeps no records

    folders = [checkpoints[name] for name in drawn.teachers]
    probabilities, predictions = answers.vote(folders, SELECT)
    assert probabilities.shape == (len(data.splits[SELECT]), 10)
    ballots = torch.stack([answers.logits(folder, SELECT).argmax(1) for folder in folders])
    agreed = ballots.mode(0).values
    clear = (ballots == agreed).sum(0) >= 2
    assert torch.equal(predictions[clear], agreed[clear])
    single, own = answers.vote(folders[:1], TEST)
    expected = predict(load(folders[0])[0], data, data.splits[TEST])
    assert torch.equal(own, single.argmax(1))
    torch.testing.assert_close(answers.logits(folders[0], TEST), expected, rtol=0, atol=0)


def test_tasks_answer_as_one_process_does(ray_session: Any, make_job: Any, tmp_path: Path) -> None:
    """The user's own teacher and the members of a deep ensemble among them; recorded for good."""
    from agrekd_ray.experiment.ray_engine import RayEngine

    data, checkpoints, drawn = pool_of(make_job())
    own = Path(shutil.copytree(checkpoints[drawn.teachers[0]], tmp_path / "mine"))
    job = make_job(
        **{
            "methods": ["agre_kd", "deep_ensemble", "teacher_vote"],
            "ensemble.checkpoints": [str(own)],
            "fleet.teachers": {"erm-*": {"resources": {}}},
        }
    )
    plan, pool = make_plan(job), Pool(job.teachers.store, data)
    for family in pool.missing(plan.recipes):
        pool.make(family)
    models = plan.answering(pool)
    assert own in models
    assert len(models) == len({*plan.checkpoints(pool).values()}) + len(drawn.teachers) + 1
    answers, engine = Answers(job, data), RayEngine(job, lambda event: None)
    try:
        assert answers.complete(answers.missing(models), engine, silent()) == 2 * len(models)
    finally:
        engine.close()
    again = Answers(job, data)  # another run, another day
    assert again.missing(models) == []
    for folder in models:
        for split in (SELECT, TEST):
            expected = predict(load(folder)[0], data, data.splits[split])
            torch.testing.assert_close(again.logits(folder, split), expected, rtol=0, atol=0)
    mine = next(one for one in members(plan, pool, again)[0] if one.kind == "own")
    assert mine.metrics[TEST] == evaluate(load(own)[0], data, TEST)
    for record in job.outputs.store.glob("*/view-*.arrow"):
        record.unlink()
    with pytest.raises(RunError, match="agrekd resume"):
        again.logits(own, TEST)
    assert len(again.missing(models)) == len(models)


def test_what_cannot_be_asked_is_one_clear_error(
    ray_session: Any, make_job: Any, tmp_path: Path
) -> None:
    from agrekd_ray.cluster.nodes import DriverData
    from agrekd_ray.experiment.ray_engine import RayEngine
    from agrekd_ray.experiment.teacher_tasks import ask_all

    job = make_job()
    _, checkpoints, drawn = pool_of(job)
    broken = Path(shutil.copytree(checkpoints[drawn.teachers[0]], tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"half")
    engine = RayEngine(job, lambda event: None)
    asked = [Asked("erm-7", broken, (TEST,))]
    try:
        with pytest.raises(CheckpointError, match=f"{broken}.*weights that the manifest describes"):
            engine.ask(asked, unexpected)
        room = engine._asking(asked[0])
        other = DriverData(job.data, "of another data set")
        with pytest.raises(DataError, match=r"node .*: the data there differ from the driver's"):
            ask_all({asked[0]: room}, other, unexpected, lambda event: None)
    finally:
        engine.close()
    mad = tmp_path / "mad"
    model, manifest = load(checkpoints[drawn.teachers[1]])
    with torch.no_grad():
        next(model.head.parameters()).flatten()[0] = float("nan")
    save(mad, model, manifest)
    with pytest.raises(RunError, match=r"model dfr-9 answers with NaN.*samples of test.*mad"):
        LocalEngine(job, unexpected).ask([Asked("dfr-9", mad, (TEST,))], unexpected)
    far = make_job(**{"fleet.resources": {"moon": 1}})
    engine = RayEngine(far, lambda event: None)
    try:
        with pytest.raises(RunError, match=r"the evaluation of erm-7: no node has room.*1 moon"):
            engine.ask(asked, unexpected)
    finally:
        engine.close()
