"""Jobs: what is valid, and that every fault is named, all at once, and nothing ever crashes."""

from __future__ import annotations

import copy
import difflib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agrekd_ray.config import Job, JobError, check_job, load_job, methods, read_job
from agrekd_ray.config.search import load_search
from agrekd_ray.models import Manifest, Model, build, save

from .conftest import TINY, merged

JOBS = sorted((Path(__file__).parent.parent / "jobs").glob("*.yaml"))
FULL: dict[str, Any] = merged(
    TINY,
    {
        "data": {
            **TINY["data"],
            "seed": 1,
            "aligned": 0.9,
            "aligned_val": 0.5,
            "aligned_test": 0.1,
            "severity": 2,
            "views": {"flip": True, "shift": 1.0, "rotate": 10.0},
        },
        "teachers.cpus": 1.0,
        "teachers.seed": 0,
        "ensemble.seed": 3,
        "ensemble.checkpoints": [],
        "ensemble.biased": None,
        "student.workers": 1,
        "student.training.clip_norm": None,
        "student.training.optimizer": "adamw",
        "student.training.precision": "auto",
        "distillation": {
            "temperature": 4.0,
            "alpha": 0.5,
            "agre_kd": {"normalize": True, "fallback": "skip"},
            "ae_kd": {"box": 0.6},
            "sample_weighting": {"floor": 0.02, "exponent": 0.5},
        },
        "methods": ["one_hot", "agre_kd"],
        "seeds": [0, 1],
        "guidance": "local",
        "fleet": {"backbones_per_actor": 2, "look_ahead": 2},
        "outputs": {"dtype": "float16"},
        "tracking": {"uri": None, "experiment": "tests"},
        "ray": {"address": None},
    },
)


@pytest.fixture
def raw(tmp_path: Path) -> dict[str, Any]:
    """A valid job, with every block in it, that writes below tmp_path."""
    return merged(
        FULL,
        {
            "runs": str(tmp_path / "runs"),
            "teachers.store": str(tmp_path / "pool"),
            "outputs.store": str(tmp_path / "outputs"),
        },
    )


def faults_of(raw: dict[str, Any], **changes: Any) -> dict[str, str]:
    """Faults by key, as a person reads them."""
    job, faults = check_job(merged(raw, changes))
    assert (job is None) == bool(faults)
    assert len({fault.key for fault in faults}) == len(faults)
    return {fault.key: str(fault) for fault in faults}


def write_idx_folder(folder: Path, train: int = 80, test: int = 40) -> Path:
    """The four files of Fashion-MNIST, with few images."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, dimensions, values in (("images", 3, images), ("labels", 1, labels)):
            header = np.array([0x800 + dimensions, *values.shape], ">u4").tobytes()
            (folder / f"{name}-{kind}-idx{dimensions}-ubyte").write_bytes(header + values.tobytes())
    return folder


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_every_job_of_the_repository_is_valid(path: Path, tmp_path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert re.fullmatch(rf"# agrekd run jobs/{path.name}( [\w.]+=\S+)*", first)
    overrides = [f"runs={tmp_path}/runs", f"teachers.store={tmp_path}/pool"]
    if read_job(path)["data"]["name"].endswith("_idx"):
        folder = write_idx_folder(tmp_path / "idx", train=1000, test=200)
        overrides += [f"data.path={folder}", "data.train=100", "data.val=100", "data.test=20"]
    job = load_job(path, overrides)
    assert job.name == path.stem
    assert job.runs == tmp_path / "runs"


def test_there_are_jobs() -> None:
    assert len(JOBS) >= 2


def test_five_faults_are_named_at_once(raw: dict[str, Any], tmp_path: Path) -> None:
    raw = merged(
        raw,
        {
            "distillation.temperature": -1,
            "distillation.alhpa": 0.5,
            "methods": ["one_hot", "agrekd"],
            "student.model.name": "cnn_depe",
            "ensemble.size": 9,
        },
    )
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(JobError) as caught:
        load_job(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: 5 faults\n")
    lines = text.splitlines()[1:]
    assert len(lines) == len(caught.value.faults) == 5
    for parts in (
        ("distillation.temperature = -1:", "greater than 0"),
        ("distillation.alhpa = 0.5: unknown key", "Did you mean distillation.alpha?"),
        ("methods.1 = agrekd: must be one of", "govern", "Did you mean agre_kd?"),
        ("student.model", "'cnn_depe'", "did you mean cnn_deep?", "torchvision/NAME"),
        ("ensemble.size = 9:", "teachers.count is 3"),
    ):
        assert [line for line in lines if all(part in line for part in parts)], parts


def test_faults_of_one_block_do_not_hide_those_of_others(raw: dict[str, Any]) -> None:
    found = faults_of(
        raw,
        **{
            "data.severity": 9,
            "teachers.model.name": "resnet81",
            "student.model.args": {"wdith": 4},
            "student.workers": 3,
            "seeds": [1, 1],
            "runs": "/proc/x",
            "ensemble.biased": "/nowhere",
        },
    )
    assert set(found) == {
        "data.severity",
        "teachers.model",
        "student.model",
        "student.training.batch_size",
        "seeds",
        "runs",
        "ensemble.biased",
    }


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"ensemble.debiased": 4}, "ensemble.debiased", ["= 4", "ensemble.size is 3"]),
        ({"ensemble.size": 4}, "ensemble.size", ["= 4", "teachers.count is 3"]),
        (
            {"ensemble.size": 0, "ensemble.debiased": 0},
            "ensemble.size",
            ["= 0", "name at least one"],
        ),
        ({"student.training.batch_size": 161}, "student.training.batch_size", ["= 161", "160"]),
        ({"teachers.training.batch_size": 161}, "teachers.training.batch_size", ["= 161", "160"]),
        ({"student.workers": 5}, "student.training.batch_size", ["= 32", "student.workers, 5"]),
        (
            {"student.workers": 2, "student.timeout_minutes": 10},
            "student.timeout_minutes",
            ["= 10", "longer than fleet.patience, 600 s"],
        ),
        (
            {"student.model.name": "resnet18"},
            "student.model",
            ["'resnet18'", "did you mean torchvision/resnet18?"],
        ),
        (
            {"teachers.model": {"name": "torchvision/reznet18"}},
            "teachers.model",
            ["did you mean torchvision/resnet18?"],
        ),
        (
            {"student.model": {"name": "torchvision/vgg11"}},
            "student.model",
            ["cannot take images of 3 x 8 x 8"],
        ),
        (
            {"student.model": {"name": "torchvision/vit_b_16"}},
            "student.model",
            ["cannot take images of 3 x 8 x 8", "224"],
        ),
        ({"student.model": {"name": "cnn", "small_stem": True}}, "student.model", ["small_stem"]),
        ({"student.model.args": {"width": 0}}, "student.model", ["width", "from 1", "0"]),
        ({"student.model.args": {"width": True}}, "student.model", ["width", "True"]),
        ({"student.model.args": {"width": 10**30}}, "student.model", ["width"]),
        ({"student.model.args": {"width": 2**30}}, "student.model", ["cnn"]),
        (
            {"student.model": {"name": "torchvision/resnet18", "args": {"weights": "DEFAULT"}}},
            "student.model",
            ["weights cannot be set"],
        ),
        (
            {"student.model": {"name": "torchvision/resnet18", "args": {"num_classes": 3}}},
            "student.model",
            ["num_classes cannot be set"],
        ),
        (
            {"student.model": {"name": "torchvision/densenet121", "args": {"bn_size": "x"}}},
            "student.model",
            ["torchvision/densenet121"],
        ),
        ({"seeds": [0, 1, 0]}, "seeds", ["[0, 1, 0]", "twice"]),
        ({"methods": ["aver", "aver"]}, "methods", ["twice"]),
        ({"methods": []}, "methods", ["at least 1 entry"]),
        ({"methods": ["avre"]}, "methods.0", ["avre", *methods(), "Did you mean aver?"]),
        ({"seeds": [-1]}, "seeds.0", ["-1"]),
        ({"seeds": [2**31]}, "seeds.0", [str(2**31)]),
        ({"runs": "/proc/x"}, "runs", ["/proc", "cannot be written"]),
        ({"runs": "x" * 300}, "runs", ["too long"]),
        ({"runs": "a\0b"}, "runs", ["null character"]),
        ({"teachers.store": "/proc/x"}, "teachers.store", ["/proc", "cannot be written"]),
        ({"data.train": 1700}, "data.train", ["1700 + 200", "no test sample", "1797"]),
        ({"data.val": 1}, "data.val", ["two halves"]),
        ({"data.name": "colored_digit"}, "data.name", ["Did you mean colored_digits?"]),
        ({"data.name": None}, "data.name", ["colored_digits, colored_idx"]),
        ({"ensemble.checkpoints": ["/nope"]}, "ensemble.checkpoints.0", ["no checkpoint there"]),
        ({"ensemble.checkpoints": ["x" * 300]}, "ensemble.checkpoints.0", ["too long"]),
        ({"ensemble.biased": "/nope/x.pt"}, "ensemble.biased", ["never loaded"]),
        ({"name": "a/b"}, "name", ["letters, digits"]),
        ({"name": "../x"}, "name", ["letters, digits"]),
        ({"name": "x" * 300}, "name", ["100"]),
        ({"distillation.temperature": -1}, "distillation.temperature", ["= -1", "than 0"]),
        ({"distillation.temperature": 0}, "distillation.temperature", ["= 0", "than 0"]),
        ({"distillation.alpha": 1.01}, "distillation.alpha", ["= 1.01", "or equal to 1"]),
        ({"distillation.alpha": -0.01}, "distillation.alpha", ["= -0.01", "or equal to 0"]),
        ({"student.training.epochs": 0}, "student.training.epochs", ["= 0", "equal to 1"]),
        ({"student.training.epochs": 1.5}, "student.training.epochs", ["= 1.5", "integer"]),
        ({"distillation.temperature": math.nan}, "distillation.temperature", ["nan", "finite"]),
        ({"distillation.temperature": math.inf}, "distillation.temperature", ["inf", "finite"]),
        ({"distillation.temperature": "warm"}, "distillation.temperature", ["warm", "number"]),
        ({"distillation.temperature": True}, "distillation.temperature", ["number, not true"]),
        ({"distillation.ae_kd.box": True}, "distillation.ae_kd.box", ["number, not true"]),
        ({"data.severity": True}, "data.severity", ["number, not true"]),
        ({"data.views.shift": True}, "data.views.shift", ["number, not true"]),
        ({"data.views.rotate": True}, "data.views.rotate", ["number, not true"]),
        ({"seeds": [True]}, "seeds.0", ["number, not true"]),
        ({"student.training.epochs": True}, "student.training.epochs", ["number, not true"]),
        ({"data": ["colored_digits"]}, "data", ["must be a mapping"]),
        ({"teachers": [1, 2]}, "teachers", ["must be a mapping"]),
        ({"student.training": "fast"}, "student.training", ["fast", "must be a mapping"]),
        ({"student.model.args": [4]}, "student.model.args", ["must be a mapping"]),
        ({"distillation": None}, "distillation", ["null", "must be a mapping"]),
        ({"methods": "aver"}, "methods", ["aver", "must be a list; of one, [aver]"]),
        ({"seeds": 3}, "seeds", ["3", "must be a list; of one, [3]"]),
        ({"runs": 3}, "runs", ["must be a path"]),
        ({"runs": None}, "runs", ["null", "must be a path"]),
        ({"name": 3}, "name", ["must be text"]),
        ({"guidance": "liev"}, "guidance", ["live, local", "Did you mean live?"]),
    ],
    ids=lambda value: "" if isinstance(value, list) else str(value)[:60],
)
def test_a_fault_names_key_value_and_what_is_allowed(
    raw: dict[str, Any], changes: dict[str, Any], key: str, words: list[str]
) -> None:
    found = faults_of(raw, **changes)
    assert list(found) == [key]
    for word in words:
        assert word in found[key]
    assert not found[key].endswith("..")


@pytest.mark.parametrize("key", ["name", "data", "teachers", "student", "methods", "data.name"])
def test_what_has_no_default_is_missed(raw: dict[str, Any], key: str) -> None:
    *path, last = key.split(".")
    block = raw
    for part in path:
        block = block[part]
    del block[last]
    assert "is missing" in faults_of(raw)[key]


def test_a_folder_below_a_file_cannot_be_written(raw: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = faults_of(raw, runs=str(tmp_path / "file" / "deeper"))
    assert list(found) == ["runs"]
    assert f"{tmp_path / 'file'} is a file" in found["runs"]


def test_checking_leaves_nothing_behind(raw: dict[str, Any], tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert faults_of(raw) == {}
    assert sorted(tmp_path.rglob("*")) == before


def _blocks(values: dict[str, Any], path: str = "") -> Iterator[str]:
    yield path
    for key, value in values.items():
        if isinstance(value, dict) and key != "args":
            yield from _blocks(value, f"{path}{key}.")


@pytest.mark.parametrize("block", list(_blocks(FULL)))
def test_an_unknown_key_is_a_fault_at_every_level(raw: dict[str, Any], block: str) -> None:
    """Every known key of every block, misspelt: the nearest name is the one that was meant."""
    values = raw
    for part in block.split(".")[:-1]:
        values = values[part]
    known = max(values, key=len)
    wrong = known[:-2] + known[-1] + known[-2] + "x"
    found = faults_of(raw, **{f"{block}{wrong}": 1})
    assert list(found) == [f"{block}{wrong}"]
    assert "unknown key; known here: " in found[f"{block}{wrong}"]
    assert difflib.get_close_matches(wrong, values, 1) == [known]
    assert found[f"{block}{wrong}"].endswith(f"Did you mean {block}{known}?")


def test_only_keys_of_the_chosen_data_set_are_known(raw: dict[str, Any]) -> None:
    text = faults_of(raw, **{"data.classes": ["a"]})["data.classes"]
    assert "Did you mean" not in text
    assert "path" not in text


def test_nothing_is_suggested_where_nothing_is_near(raw: dict[str, Any]) -> None:
    assert "Did you mean" not in faults_of(raw, extra=1)["extra"]


def test_keys_that_are_no_text(raw: dict[str, Any]) -> None:
    raw[1] = 2  # type: ignore[index]
    assert faults_of(raw) == {"1": "1 = 1: a key must be text."}


def test_a_checkpoint_must_fit_the_data(raw: dict[str, Any], tmp_path: Path) -> None:
    model = Model(name="cnn", args={"width": 2})
    for name, shape, classes in (
        ("good", (3, 8, 8), tuple("0123456789")),
        ("other", (3, 8, 8), ("cat", "dog")),
        ("large", (3, 32, 32), tuple("0123456789")),
    ):
        manifest = Manifest(model, shape, classes, "f", "d")
        save(tmp_path / name, build(model, shape, len(classes), 0), manifest)
    paths = [str(tmp_path / name) for name in ("good", "other", "large")]
    found = faults_of(raw, **{"ensemble.checkpoints": paths, "ensemble.biased": paths[1]})
    assert set(found) == {"ensemble.checkpoints.1", "ensemble.checkpoints.2", "ensemble.biased"}
    assert "cat, dog" in found["ensemble.biased"]
    assert (
        "takes images of 3 x 32 x 32, the data are images of 3 x 8 x 8"
        in found["ensemble.checkpoints.2"]
    )
    assert faults_of(raw, **{"ensemble.checkpoints": paths[:1]}) == {}


def load(tmp_path: Path, content: str | bytes, *overrides: str) -> Job:
    path = tmp_path / "job.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_job(path, overrides)


def test_overrides(raw: dict[str, Any], tmp_path: Path) -> None:
    raw["student"]["training"]["clip_norm"] = 2
    job = load(
        tmp_path,
        yaml.safe_dump(raw),
        "distillation.temperature=2.5",
        "seeds=[4, 5]",
        "methods=[aver]",
        "student.training.clip_norm=null",
        "student.training.learning_rate=1e-3",
        "tracking.experiment=a=b",
        "distillation.sample_weighting={floor: 0.1}",
        "student.model.args.width=6",
    )
    assert job.distillation.temperature == 2.5
    assert job.seeds == (4, 5)
    assert job.methods == ("aver",)
    assert job.student.training.clip_norm is None
    assert job.student.training.learning_rate == 0.001
    assert job.tracking.experiment == "a=b"
    assert job.distillation.sample_weighting is not None
    assert job.distillation.sample_weighting.floor == 0.1
    assert job.student.model.args == {"width": 6}


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        ("nonsense", "nonsense", "key.path=value"),
        ("=3", "=3", "key.path=value"),
        ("--seeds=3", "--seeds=3", "key.path=value"),
        ("seeds =3", "seeds =3", "key.path=value"),
        ("seeds=[1", "seeds", "no valid YAML"),
        ("name={", "name", "no valid YAML"),
        ("seeds.0=4", "seeds.0", "as a whole"),
        ("methods.1=aver", "methods.1", "as a whole"),
        ("name=${nope}", "job", "nope"),
        ("distillation.temprature=3", "distillation.temprature", "distillation.temperature?"),
        ("teachers=3", "teachers", "mapping"),
    ],
)
def test_an_override_that_makes_no_sense(
    raw: dict[str, Any], tmp_path: Path, override: str, key: str, words: str
) -> None:
    with pytest.raises(JobError) as caught:
        load(tmp_path, yaml.safe_dump(raw), override, "distillation.alpha=0.5")
    (fault,) = caught.value.faults
    assert fault.key == key
    assert words in str(fault)


@pytest.mark.parametrize(
    ("written", "key", "words"),
    [
        ("seeds: [010]", "seeds.0 = 010", "write 10, or '010' in quotes"),
        ("seeds: [0b11]", "seeds.0 = 0b11", "a decimal number"),
        ("seeds: [1:30]", "seeds.0 = 1:30", "to the base of 60"),
        ("data: {classes: [no, 'yes']}", "data.classes.0 = no", "write false, or 'no' in quotes"),
        ("data: {args: {loud: On}}", "data.args.loud = On", "write true, or 'On' in quotes"),
        ("fleet: {labels: {off: x}}", "fleet.labels.off = off", "write false"),
    ],
)
def test_what_yaml_reads_in_two_ways_is_refused(
    raw: dict[str, Any], tmp_path: Path, written: str, key: str, words: str
) -> None:
    block, _, value = written.partition(": ")
    content = yaml.safe_dump({name: raw[name] for name in raw if name != block})
    for text, overrides in ((f"{content}{written}\n", []), (content, [f"{block}={value}"])):
        with pytest.raises(JobError) as caught:
            load(tmp_path, text, *overrides)
        fault = caught.value.faults[0]
        assert str(fault).startswith(f"{key}: ")
        assert words in str(fault)


def test_what_yaml_reads_in_one_way_is_taken_as_written(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    job = load(
        tmp_path,
        yaml.safe_dump(raw),
        "name='010'",
        "seeds=[0, 10, 1_000, 0x10]",
        "tracking.experiment='no'",
        "student.training.learning_rate=0.010",
    )
    assert job.name == "010"
    assert job.seeds == (0, 10, 1000, 16)
    assert job.tracking.experiment == "no"
    assert job.student.training.learning_rate == 0.01


def test_all_overrides_of_wrong_syntax_are_named(raw: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(JobError) as caught:
        load(tmp_path, yaml.safe_dump(raw), "a", "seeds=[0]", "b")
    assert [fault.key for fault in caught.value.faults] == ["a", "b"]
    with pytest.raises(JobError) as caught:
        load(tmp_path, yaml.safe_dump(raw), "seeds=[", "name={", "seeds.0=1")
    assert [fault.key for fault in caught.value.faults] == ["seeds", "name", "seeds.0"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "holds no keys"),
        ("# only a comment\n", "holds no keys"),
        ("null", "holds no keys"),
        ("- a\n- b\n", "holds no keys"),
        ("5", "holds no keys"),
        ("name: [", "no valid YAML"),
        ("name:\n\t- tab", "no valid YAML"),
        ("name: a\nname: b\n", "duplicate key name"),
        ("data: {seed: 1, seed: 2}", "duplicate key seed"),
        ("a: 1\n---\nb: 2\n", "no valid YAML"),
        ("a: &a [*a]", "no valid YAML"),
        ("a: ${a}", "no valid YAML"),
        ("~: 1\n", "no valid YAML"),
        ("[1]: 2\n", "no valid YAML"),
        (b"name: a\0b", "null characters"),
        (bytes(range(256)), "not UTF-8"),
        ("name: ä".encode("utf-16"), "is UTF-16"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_file_that_is_no_job(tmp_path: Path, content: str | bytes, words: str) -> None:
    with pytest.raises(JobError) as caught:
        load(tmp_path, content)
    (fault,) = caught.value.faults
    assert words in str(fault)
    assert str(tmp_path / "job.yaml") in str(caught.value)


def test_a_search_in_place_of_a_job_and_a_job_in_place_of_a_search_name_the_other_command() -> None:
    top = Path(__file__).parent.parent
    search, job = top / "tune_configs/colored_digits.yaml", top / "jobs/colored_digits.yaml"
    with pytest.raises(
        JobError,
        match=re.escape(
            f"1 fault\n  - space: makes this a search, which `agrekd tune {search}` runs"
        ),
    ):
        load_job(search)
    with pytest.raises(
        JobError,
        match=re.escape(f"1 fault\n  - methods: makes this a job, which `agrekd run {job}` runs"),
    ):
        load_search(job, ["trials=2"])


def test_yaml_runs_no_code(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    with pytest.raises(JobError, match="no valid YAML"):
        load(tmp_path, f'a: !!python/object/apply:os.mkdir ["{proof}"]')
    assert not proof.exists()


def test_a_missing_file_has_a_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "colored_digits.yaml").write_text("a: 1")
    with pytest.raises(JobError, match=r"Did you mean colored_digits\.yaml\?"):
        load_job(tmp_path / "colored_digts.yaml")
    with pytest.raises(JobError, match="No such file"):
        load_job(tmp_path / "nowhere" / "x.yaml")
    with pytest.raises(JobError, match="directory"):
        load_job(tmp_path)


def test_the_resolved_job_is_a_job_again(raw: dict[str, Any]) -> None:
    job, faults = check_job(raw)
    assert job is not None, faults
    again, faults = check_job(job.model_dump(mode="json"))
    assert (again, faults) == (job, [])
    written, faults = check_job(yaml.safe_load(yaml.safe_dump(job.model_dump(mode="json"))))
    assert (written, faults) == (job, [])


def _leaves(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    if isinstance(values, dict | list):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from _leaves(value, (*path, key))


# Small numbers only where they size a model: a large one is valid, and slow.
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["cnn", "live", "colored_idx", "sgd", "x.pt", "/", ".", "", "~", "a\0b"])
)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=5), SCALARS)


@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(path=st.sampled_from(sorted(_leaves(FULL), key=str)), value=VALUES)
def test_whatever_stands_in_a_job_is_valid_or_a_fault(
    raw: dict[str, Any], path: tuple[Any, ...], value: Any
) -> None:
    changed = copy.deepcopy(raw)
    block: Any = changed
    for part in path[:-1]:
        block = block[part]
    block[path[-1]] = value
    job, faults = check_job(changed)
    assert (job is None) == bool(faults)
    for fault in faults:
        assert fault.key
        assert str(fault)


def test_what_cannot_be_read_of_a_job_hides_no_other_fault(tmp_path: Path) -> None:
    raw = merged(TINY, {"student.training.epochs": 0})
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(raw) + "draws: [010]\n")
    with pytest.raises(JobError) as caught:
        load_job(path, ["seeds=1:30", "student.workers", "distillation.alpha=[1"])
    assert [fault.key for fault in caught.value.faults] == [
        "student.workers",
        "draws.0",
        "seeds",
        "distillation.alpha",
        "student.training.epochs",
    ]
