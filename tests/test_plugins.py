"""Parts of a user's own: what a module outside the package registers, in every process of a job."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import agrekd_ray as ak
from agrekd_ray import plugins
from agrekd_ray.core.strategies import STRATEGIES
from agrekd_ray.teachers import KINDS
from agrekd_ray.teachers.kinds import Half, HeldOut
from tests.shared import until

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/plugins.md").read_text()
PARTS, JOB = (re.findall(rf"```{kind}\n(.*?)```", PAGE, re.S)[0] for kind in ("python", "yaml"))


pytestmark = pytest.mark.usefixtures("plugins_forgotten")


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder with the page's job and plugin, outside the package."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    says_where = (
        f"with open({str(tmp_path / 'log')!r}, 'a') as log:\n    print(__file__, file=log)\n"
    )
    (folder / "mine.py").write_text(PARTS + says_where)
    runs, job = tmp_path / "runs", yaml.safe_load(JOB)
    job["teachers"]["store"] = str(runs / "teachers")
    places = {"runs": str(runs), "outputs": {"store": str(runs / "outputs")}}
    (folder / "job.yaml").write_text(yaml.safe_dump(job | places))
    return folder


def ended(*words: object, cwd: Path, **settings: Any) -> str:
    """What a command says, in a process of its own."""
    process = subprocess.run(
        [sys.executable, "-m", "agrekd_ray", *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        **settings,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_a_job_of_ones_own_parts_alone(agrekd: Any, theirs: Path, tmp_path: Path) -> None:
    code, out, err = agrekd("run", theirs / "job.yaml", "guidance=local")
    assert code == 0, err
    assert "gentle" in out
    assert "odd" in out
    run = ak.load(tmp_path / "runs/theirs/latest")
    assert isinstance(run, ak.Run)
    confidences = run.table[run.table.metric == "confidence"]
    assert set(confidences.group) == {"group/even", "group/odd"}
    assert confidences.value.min() > 0.1
    assert len(run.weights)
    assert (tmp_path / "log").read_text().count("mine.py") == 1
    pictures = np.random.default_rng(0).random((4, 1, 8, 8), np.float32)
    assert run.student("gentle").predict(pictures).shape == (4,)


def test_what_has_been_made_belongs_to_the_code_that_made_it(
    agrekd: Any, theirs: Path, tmp_path: Path
) -> None:
    agrekd("run", theirs / "job.yaml", "guidance=local")
    run, module = tmp_path / "runs/theirs/latest", theirs / "mine.py"
    first = run.resolve()
    text = module.read_text()
    module.write_text(text.replace("torch.nn.ReLU()", "torch.nn.Tanh()"))

    code, _, err = agrekd("resume", run)
    assert code == 2
    assert "plugins.0" in err
    assert "has changed since this run began" in err
    with pytest.raises(ak.AgrekdError, match="has changed since this run began"):
        ak.open_student(run / "students/gentle-seed-0")
    code, _, err = agrekd("run", theirs / "job.yaml", "guidance=local")
    assert code == 0, err  # with teachers and students of its own
    assert len([*(tmp_path / "runs/teachers").glob("erm-0-*")]) == 2

    module.write_text(text)
    assert agrekd("resume", first)[0] == 0
    assert ak.open_student(first / "students/gentle-seed-0").classes[0] == "0"


def test_other_code_of_a_debiasing_makes_other_debiased_teachers_and_no_others(
    agrekd: Any, theirs: Path, tmp_path: Path
) -> None:
    """The models are ours here, so nothing else is of the plugin's code."""
    module, pool = theirs / "mine.py", tmp_path / "runs/teachers"
    ours = ["guidance=local", "teachers.model=null", "teachers.model.name=cnn", "methods=[aver]"]
    for code in (module.read_text(), module.read_text().replace("(means**2)", "(means**4)")):
        module.write_text(code)
        status, out, err = agrekd("run", theirs / "job.yaml", *ours)
        assert status == 0, err
        assert "3 (1 DFR, 1 nearest mean)" in out
        assert "debiased (nearest mean)" in out
    kinds = Counter(path.name.split("-")[0] for path in pool.glob("*-*"))
    assert kinds == {"erm": 3, "dfr": 1, "nearest_mean": 2}
    manifest = json.loads(next(pool.glob("nearest_mean-*/manifest.json")).read_text())
    assert manifest["made_by"]["nearest_mean"] == {"sharpness": 0.5}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["distillation.gentle.powr=2"], ["distillation.gentle.powr", "Did you mean"]),
        (["distillation.gentle.power=much"], ["distillation.gentle.power = much", "number"]),
        (
            ["distillation.gentel.power=2"],
            ["distillation.gentel", "Did you mean distillation.gentle"],
        ),
        (["distillation.gentle.power=x", "distillation.alpha=7"], ["gentle.power", "alpha = 7"]),
        (["methods=[gentel]"], ["methods.0 = gentel", "Did you mean gentle"]),
        (["teachers.nearest_mean.sharpnes=2"], ["Did you mean teachers.nearest_mean.sharpness"]),
        (["teachers.nearest_mean.sharpness=x"], ["teachers.nearest_mean.sharpness = x", "number"]),
        (["ensemble.debiased={nearest_men: 1}"], ["Did you mean ensemble.debiased.nearest_mean"]),
        (["ensemble.debiased={nearest_mean: 4}"], ["more debiased teachers than teachers"]),
        (["data.sise=3"], ["data.factory", "'sise'"]),
        (["data.name=[[]]"], ["data"]),
        (["student.model.args.hiden=3"], ["student.model: narrow takes no argument 'hiden'"]),
        (["data.name=parrity"], ["data.name = parrity", "must be one of", "parity"]),
        (["data=null", "data.name=custom", "data.factory=parrity"], ["Did you mean parity?"]),
        (["plugins=[mien]"], ["plugins.0 = mien", "no such module"]),
        (["plugins=[./gone/mine.py]"], ["plugins.0", "is not there"]),
        (["plugins=[no-name]"], ["plugins.0 = no-name", "is no name of a module"]),
        (["plugins=[broken]"], ["plugins.0", "cannot be imported (ZeroDivisionError"]),
        (["plugins=[json]"], ["plugins.0", "another module of that name is imported"]),
        (["plugins=[taken]"], ["plugins.0", "strategy 'aver' is agrekd_ray.core.strategies's"]),
        (["plugins=parts"], ["plugins", "must be a list"]),
        (["plugins=[3]"], ["plugins.0", "must be text"]),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    agrekd: Any, theirs: Path, changes: list[str], words: list[str]
) -> None:
    (theirs / "broken.py").write_text("1 / 0")
    (theirs / "json.py").write_text("")
    taken = "import agrekd_ray as ak\n@ak.strategy('aver', per='sample')\ndef aver(evidence): ..."
    (theirs / "taken.py").write_text(taken)
    code, _, err = agrekd("validate", theirs / "job.yaml", *changes)
    assert code == 2
    for word in words:
        assert word in err


def test_what_this_process_alone_knows_is_for_this_process(agrekd: Any, theirs: Path) -> None:
    @ak.strategy("typed", per="sample", needs_gradients=False)
    def typed(evidence: Any) -> Any:
        return STRATEGIES["aver"].function(evidence)

    @ak.debiased("noted")
    def noted(held_out: Any, *, seed: int) -> Any:
        return held_out.weight_CD, held_out.bias_C

    job, given = theirs / "job.yaml", ["methods=[typed]", "ensemble.debiased={noted: 1}"]
    code, _, err = agrekd("validate", job, *given)
    assert code == 2
    assert "methods.0 = typed: is known to this process alone" in err
    assert "ensemble.debiased.noted = noted: is known to this process alone" in err
    assert agrekd("validate", job, *given, "guidance=local")[0] == 0


def test_names_and_options_that_no_job_could_write() -> None:
    decorators: list[Callable[[str], Any]] = [
        lambda name: ak.strategy(name, per="sample"),
        ak.selection_rule,
        ak.dataset,
        ak.debiased,
        ak.model,
    ]
    for decorate in decorators:
        with pytest.raises(ValueError, match="letters, digits and _"):
            decorate("two words")(lambda: None)
    with pytest.raises(ValueError, match="every option needs a default"):

        @ak.strategy("open", per="sample")
        def open_ended(evidence: Any, *, power: float) -> Any: ...

    with pytest.raises(ValueError, match=r"is agrekd_ray\.models\.cnns's already"):
        ak.model("cnn")(lambda shape, classes: None)


def test_a_package_that_is_installed_needs_no_key(
    agrekd: Any, theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = theirs / "theirs-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[agrekd_ray.plugins]\nours = mine\n")
    monkeypatch.syspath_prepend(theirs)
    code, _, err = agrekd("validate", theirs / "job.yaml", "plugins=[]")
    assert code == 0, err


def test_a_package_is_read_whole(tmp_path: Path) -> None:
    package = tmp_path / "whole"
    package.mkdir()
    (package / "__init__.py").write_text("from whole.part import VALUE")
    (package / "part.py").write_text("VALUE = 1")
    first = plugins.load(plugins.located("whole", tmp_path))
    assert first.startswith(f"{package}#")
    assert plugins.load(first) == first
    (package / "part.py").write_text("VALUE = 2")
    with pytest.raises(ak.AgrekdError, match="has changed"):
        plugins.load(first)
    assert plugins.load(str(package)) != first
    assert sys.modules["whole"].VALUE == 2


def test_every_process_of_a_cluster_has_them(
    ray_cluster: Any, add_node: Any, theirs: Path, tmp_path: Path, usual_signals: None
) -> None:
    add_node(num_cpus=4, resources={"far": 4})
    address = f"ray.address={ray_cluster.address}"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    far = "student.resources={far: 1}"
    stopped = subprocess.Popen(
        [sys.executable, "-m", "agrekd_ray", "run", theirs / "job.yaml", address, far],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    runs = tmp_path / "runs/theirs"
    until(lambda: stopped.poll() is not None or list(runs.glob("latest/students/*")))
    stopped.send_signal(signal.SIGINT)
    stopped.wait(120)
    out = ended("resume", runs / "latest", cwd=elsewhere)
    assert "gentle" in out
    assert "AVER" in out
    shipped = {line for line in (tmp_path / "log").read_text().split() if "py_modules" in line}
    assert shipped  # a process of the cluster has imported what was sent to it

    search = {
        "name": "their_search",
        "job": str(theirs / "job.yaml"),
        "space": {
            "strategy": {"choice": ["gentle"]},
            "distillation.gentle.power": {"uniform": [0.5, 3.0]},
        },
        "select": "agreement",
        "trials": 2,
        "final": {"seeds": [100]},
    }
    (theirs / "search.yaml").write_text(yaml.safe_dump(search))
    out = ended("tune", theirs / "search.yaml", address, cwd=elsewhere)
    assert "agreement" in out
    assert "winner" in out


@pytest.mark.parametrize("classes", [2, 10])
def test_the_broken_teachers_of_the_guards_study(classes: int) -> None:
    """Of an ERM layer that is right everywhere."""
    plugins.load(str(ROOT / "jobs/studies/broken.py"))
    rng = np.random.default_rng(0)
    labels_N = np.arange(40 * classes) % classes
    features_ND = np.eye(classes)[labels_N] + rng.normal(scale=0.1, size=(len(labels_N), classes))
    half = Half(features_ND, labels_N, labels_N)
    held_out = HeldOut(half, lambda: half, np.eye(classes), np.zeros(classes))

    def answers(kind: str, **settings: Any) -> np.ndarray:
        made = KINDS[kind].function(held_out, KINDS[kind].settings(**settings), 0)
        logits_NC = features_ND @ made[0].T + made[1]
        assert logits_NC.shape == (len(labels_N), classes)
        return logits_NC.argmax(1)

    swapped = np.array([1, 0, *range(2, classes)])
    assert (answers("reordered") == swapped[labels_N]).all()
    assert (answers("reordered", rotate_by=1) == (labels_N + 1) % classes).all()
    assert (answers("shuffled") == labels_N).mean() < 1 / classes + 0.2
    assert len(np.unique(answers("shuffled"))) > 1
    assert (answers("untrained") == labels_N).mean() < 0.7
