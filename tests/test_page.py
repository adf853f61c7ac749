"""The page of a run: everything is on it, nothing is fetched, and what a file holds stays text."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from agrekd_ray.commands.runs import Ran, headline_of
from agrekd_ray.errors import RunError
from agrekd_ray.report import job as report
from agrekd_ray.report import page
from agrekd_ray.report.job import headline, remarks
from agrekd_ray.report.page import write_report
from agrekd_ray.report.style import new_figure, save
from agrekd_ray.results import Agreement, Epoch, Metrics, StudentResult, TeacherResult
from agrekd_ray.results.search import RuleReport, SearchResult, TrialResult

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
VOID = {"meta", "img", "br", "hr", "link", "input", "wbr"}
SETTINGS: dict[str, Any] = {
    "name": "digits",
    "data": {"name": "colored_digits", "aligned": 0.98, "views": {"count": None}},
    "student": {"model": {"name": "cnn"}, "training": {"epochs": 2, "learning_rate": 0.05}},
    "distillation": {"temperature": 4.0, "alpha": 1.0},
    "methods": ["one_hot_dfr", "aver", "agre_kd"],
    "seeds": [0, 1, 2],
}
ABOUT: dict[str, Any] = {
    "name": "digits",
    "folder": "/runs/digits/20261124-083700-ab12",
    "classes": list("0123456789"),
    "groups": ["aligned", "conflicting"],
    "data": "f" * 64,
    "seconds": 161.0,
    "effort": {"actors": 1, "forwards": 1200, "recorded": 3_400_000},
    "versions": {"agrekd_ray": "9.9.9", "torch": "2.6"},
    "settings": SETTINGS,
}
SEARCH: dict[str, Any] = {
    "name": "temperature",
    "job": "/jobs/digits.yaml",
    "changes": {},
    "space": {
        "strategy": {"choice": ["aver", "agre_kd"]},
        "distillation.temperature": {"loguniform": [1, 16]},
        "distillation.agre_kd.fallback": {
            "choice": ["uniform", "skip"],
            "when": {"distillation.alpha": [0.5, 1]},
        },
    },
    "searcher": {"name": "optuna", "seed": 3},
    "scheduler": {"name": "asha", "grace": 2, "reduction": 3},
    "trials": 4,
    "minutes": None,
    "seeds": [0],
    "select": "contradicted",
    "concurrency": None,
    "final": {"seeds": [100, 101], "default": {"distillation.temperature": 2}},
}


class Page(HTMLParser):
    """A page taken apart: tags with attributes, tables as rows of texts, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text, self.style, self.headline = "", "", ""
        self._open: list[tuple[str, dict[str, str]]] = []
        self._table = ""
        self.feed(html)
        self.close()
        assert not self._open, "tags that are not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append((tag, found))
        if tag not in VOID:
            self._open.append((tag, found))
        if found.get("role") == "region":
            self._table = found["aria-label"]
            self.tables[self._table] = []
        elif tag == "tr":
            self.tables[self._table].append([])
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag, f"</{tag}> closes another tag"
        if tag in ("td", "th"):
            row = self.tables[self._table][-1]
            row[-1] = " ".join(row[-1].split())

    def handle_data(self, data: str) -> None:
        within = [tag for tag, _ in self._open]
        if "style" in within:
            self.style += data
            return
        self.text += data
        if "table" in within and {"td", "th"} & set(within):
            row = self.tables[self._table][-1]
            row[-1] += data
        if any(found.get("class") == "headline" for _, found in self._open):
            self.headline += data

    def attributes(self, tag: str, name: str) -> list[str]:
        return [found[name] for other, found in self.tags if other == tag and name in found]

    def row(self, table: str, first: str) -> list[str]:
        (found,) = [row for row in self.tables[table] if row[0] == first]
        return found


def metrics(worst: float) -> Metrics:
    groups, counts = {"aligned": 0.97, "conflicting": worst}, {"aligned": 1100, "conflicting": 90}
    return Metrics(0.1 + 0.8 * worst, worst, 0.9, 0.5, worst / 2, 0.15, groups, counts)


def student(method: str, seed: int, worst: float, teachers: tuple[str, ...] = ()) -> StudentResult:
    first = {group: dict.fromkeys(teachers, 9.0) for group in ("aligned", "conflicting")}
    shares = [0.5 ** (n + 1) for n in range(len(teachers))]
    last = {
        "aligned": dict(zip(teachers, shares, strict=True)),
        "conflicting": dict(zip(teachers, reversed(shares), strict=True)),
    }
    moved = {"influence": last["aligned"], "influence_by_group": last} if teachers else {}
    history = [
        Epoch(0, 2.0, 0.1, 1.0, metrics(0.1), first),
        Epoch(1, 1.0, 0.1, 1.0, metrics(worst), last, **moved),
    ]
    splits = {"val": metrics(worst + 0.05), "test": metrics(worst)}
    return StudentResult(method, seed, "2 (1 debiased)", splits, history if teachers else [])


WORST = {"one_hot_dfr": 0.6, "aver": 0.2, "agre_kd": 0.4}
MEMBERS = [
    TeacherResult(name, name[:3], f"{name}{'f' * 64}", {"test": metrics(0.3)})
    for name in ("erm-0", "dfr-1")
]
OUTCOMES = [
    student(method, seed, worst + 0.01 * seed * (method == "agre_kd"), ("erm-0", "dfr-1"))
    for method, worst in WORST.items()
    for seed in (0, 1, 2)
]


def trial(number: int, state: str, score: float, **more: Any) -> TrialResult:
    setting = {"strategy": "aver", "distillation.temperature": 2.5 + number}
    rules = {"contradicted": score, "accuracy": 0.5}
    history = [Epoch(0, 1.0, 0.1, 1.0, metrics(0.2), selection=rules)]
    return replace(TrialResult(number, setting, state, 3, history, 12.3, metrics(0.25)), **more)


TRIALS = [
    trial(0, "finished", 0.5),
    trial(
        1,
        "finished",
        0.7,
        setting={
            "strategy": "agre_kd",
            "distillation.temperature": 1.23456,
            "distillation.agre_kd.fallback": "skip",
        },
    ),
    trial(2, "failed", 0, history=[], test=None, reason="the student diverged"),
    trial(3, "stopped early", 0.6),
]
RULES = [
    RuleReport("worst_group", ("groups", "labels"), 0.9, 3, 0, 0.25),
    RuleReport("contradicted", ("teachers",), -0.314, 3, 1, 0.25),
    RuleReport("accuracy", ("labels",), None, 3, 0, 0.25),
]
FINAL = [
    student(method, seed, worst, ("erm-0", "dfr-1"))
    for method, worst in (("winner", 0.5), ("default", 0.45))
    for seed in (100, 101)
]
RESULT = SearchResult(
    "temperature",
    "/runs/temperature/20261124-090000-ab12",
    "contradicted",
    1,
    TRIALS,
    RULES,
    FINAL,
    "The winner is better than the default.",
    {k: v for k, v in ABOUT.items() if k not in ("name", "folder", "data")}
    | {"settings": SEARCH, "job": SETTINGS, "members": [asdict(m) for m in MEMBERS]},
)


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Path]:
    """Makes the folder of a job."""

    def make(
        outcomes: list[StudentResult] = OUTCOMES,
        members: list[TeacherResult] = MEMBERS,
        **about: Any,
    ) -> Path:
        folder = tmp_path / "20261124-083700-ab12"
        (folder / "plots").mkdir(parents=True, exist_ok=True)
        (folder / "job.yaml").write_text("name: digits\n")
        path = folder / "results.json"
        report.write_json(path, outcomes, members, MEMBERS[0], ABOUT | about)
        return folder

    return make


@pytest.fixture
def search(tmp_path: Path) -> Callable[..., Path]:
    """Makes the folder of a search."""

    def make(result: SearchResult = RESULT) -> Path:
        folder = tmp_path / "20261124-090000-ab12"
        (folder / "plots").mkdir(parents=True, exist_ok=True)
        (folder / "search.yaml").write_text("name: temperature\n")
        (folder / "job.yaml").write_text("name: digits\n")
        (folder / "results.json").write_text(json.dumps(asdict(result)))
        return folder

    return make


def read(folder: Path) -> Page:
    return Page(write_report(folder).read_text())


def test_a_job_is_on_its_page(job):
    folder = job()
    assert write_report(folder) == folder / "report.html"
    found = read(folder)
    assert found.headline == (
        "AGRE-KD is the best distilled student: 41.0 ± 1.0 % on the worst group, "
        "+21.0 points (95 % bootstrap interval +20.0 … +22.0, 3 seeds) against AVER. "
        "± is the standard deviation over 3 seeds, one draw of data and teachers."
    )
    for text in (
        "24 November 2026, 08:37 UTC",
        f"agrekd run {folder / 'job.yaml'}",
        "colored_digits: aligned 0.98",
        "aligned (1,100), conflicting (90)",
        "1 biased (ERM): erm-0; 1 debiased (DFR): dfr-1",
        "cnn, 2 epochs, temperature 4, alpha 1",
        "2 min 41 s",
        "1,200 forward passes in 1 process, 3.4 MB recorded",
        "agrekd_ray 9.9.9",
        "learning_rate: 0.05",
    ):
        assert text in found.text


def test_the_tables_of_a_job(job):
    found = read(job())
    compared = found.tables["Methods on the test split"]
    assert compared[0][:5] == ["Method", "Teachers", "Worst group", "Accuracy", "Weighted"]
    assert compared[1] == ["aligned", "conflicting"]
    assert [row[0] for row in compared[2:]] == ["One-hot + DFR", "AVER", "AGRE-KD"]
    assert found.row("Methods on the test split", "AGRE-KD") == [
        *("AGRE-KD", "2 (1 debiased)", "41.0 ± 1.0", "42.8 ± 0.8", "90.0 ± 0.0", "50.0 ± 0.0"),
        *("20.5 ± 0.5", "15.0 ± 0.0", "97.0 ± 0.0", "41.0 ± 1.0"),
    ]
    students = found.tables["Every student on the test split"]
    assert len(students) == 2 + len(OUTCOMES)
    assert ["AGRE-KD", "2", "42.0"] in [row[:3] for row in students]
    assert found.row("Teachers on the test split", "dfr-1")[:4] == [
        *("dfr-1", "debiased (DFR)", "dfr-1fffffff", "30.0")
    ]
    assert "the biased model" in [row[1] for row in found.tables["Teachers on the test split"][2:]]


def test_who_taught_whom_is_of_the_last_epoch_and_debiased_teachers_stand_first(job):
    taught = read(job()).tables["Who taught whom"]
    assert taught[1] == ["dfr-1 debiased (DFR)", "erm-0 biased (ERM)"]
    assert ["AGRE-KD", "aligned", "0.250", "0.500"] in taught
    assert ["AGRE-KD", "conflicting", "0.500", "0.250"] in taught


def test_who_moved_the_student_is_told_of_all_samples_and_by_group(job):
    table = read(job()).tables["Who moved the student"]
    assert table[0] == ["Method", "Taught group", "Influence of a teacher"]
    aver = [row for row in table if row[0] == "AVER"]
    assert aver == [
        ["AVER", "all samples", "0.250", "0.500"],
        ["AVER", "aligned", "0.250", "0.500"],
        ["AVER", "conflicting", "0.500", "0.250"],
    ]


def test_the_vote_stands_against_the_biased_model(job):
    folder = job()
    results = json.loads((folder / "results.json").read_text())
    half = asdict(Agreement(90, 0.5, 0.125, 0.25, 0.125))
    found = {"overall": half, "groups": {"conflicting": half}, "overlapping": {}}
    results["diagnostics"]["agreement"] = {"test": found}
    (folder / "results.json").write_text(json.dumps(results))
    page = read(folder)
    table = page.tables["Agreement of the teachers with the biased model"]
    assert table[-1] == ["test", "conflicting", "90", "50.0", "12.5", "25.0", "12.5"]
    del results["diagnostics"]
    (folder / "results.json").write_text(json.dumps(results))
    earlier = read(folder)
    assert "Agreement of the teachers with the biased model" not in earlier.tables


def test_many_teachers_are_shown_by_family(job):
    names = tuple(f"{'dfr' if n < 3 else 'erm'}-{n}" for n in range(20))
    members = [TeacherResult(name, name[:3], "f") for name in names]
    taught = read(job([student("aver", 0, 0.2, names)], members)).tables["Who taught whom"]
    assert taught[1] == ["debiased (DFR) mean of 3", "biased (ERM) mean of 17"]
    assert taught[2][:3] == ["AVER", "aligned", f"{(0.5 + 0.25 + 0.125) / 3:.3f}"]


def test_only_the_best_distilled_student_stands_out(job):
    html = write_report(job()).read_text()
    strong = re.findall(r'<tr class="strong[^>]*>\s*<th[^>]*>([^<]*)', html)
    assert strong == ["AGRE-KD"]


def test_one_seed_has_no_deviation(job):
    found = read(job([o for o in OUTCOMES if o.seed == 0]))
    assert "±" not in found.text
    assert "one seed" in found.text
    assert "(1 seed) against AVER" in found.headline


def test_a_method_with_one_seed_among_others_has_no_deviation(job):
    found = read(job([*OUTCOMES, student("teacher_vote", 0, 0.3)]))
    assert found.row("Methods on the test split", "Teachers, vote")[2] == "30.0"
    assert "up to 3 seeds" in found.text


def test_a_value_that_is_not_a_number_is_a_dash(job):
    bad = replace(metrics(0.2), worst_group_accuracy=math.nan, groups={"aligned": math.nan})
    outcomes = [replace(OUTCOMES[3], splits={"test": bad}), *OUTCOMES[6:]]
    row = read(job(outcomes)).row("Methods on the test split", "AVER")
    assert (row[2], row[3], row[-2]) == ("–", "26.0", "–")


def test_overlapping_groups_have_columns_of_their_own(job):
    further = {"overlapping": {"male": 0.7, "muslim": 0.25}}
    both = replace(metrics(0.3), worst_overlapping_group_accuracy=0.25, **further)
    found = read(job([replace(OUTCOMES[3], splits={"test": both}), *OUTCOMES[6:]]))
    header = found.tables["Methods on the test split"][0]
    row = found.row("Methods on the test split", "AVER")
    assert "Worst overlapping" in header
    assert row[3] == "25.0"
    assert row[-2:] == ["70.0", "25.0"]


COVERAGE = {"groups": (2, 4), "classes": (9, 10)}


def over_some(found: Metrics) -> Metrics:
    return replace(found, coverage=COVERAGE)


def test_figures_over_some_groups_say_so(job):
    some = [replace(o, splits={s: over_some(m) for s, m in o.splits.items()}) for o in OUTCOMES]
    members = [replace(m, metrics={"test": over_some(m.metrics["test"])}) for m in MEMBERS]
    found = read(job(some, members))
    assert "on the worst of 2 of 4 groups, +21.0 points" in found.headline
    for name in (
        "Methods on the test split",
        "Every student on the test split",
        "Teachers on the test split",
    ):
        (header, *_) = found.tables[name]
        assert {
            "Worst of 2 of 4 groups",
            "Weighted over 2 of 4 groups",
            "Balanced over 9 of 10 classes",
            "Worst of 9 of 10 classes",
        } <= set(header)
    assert "Worst group" in read(job()).tables["Methods on the test split"][0]


def test_a_search_says_over_what_it_selected(search):
    def some(trial: TrialResult) -> TrialResult:
        history = [replace(e, val=over_some(e.val)) for e in trial.history]
        return replace(trial, history=history, test=trial.test and over_some(trial.test))

    final = [replace(o, splits={s: over_some(m) for s, m in o.splits.items()}) for o in FINAL]
    trials = [some(trial) for trial in TRIALS]
    result = replace(RESULT, trials=trials, final=final, select="worst_group")
    assert result.selected_on == "worst_group over 2 of 4 groups"
    assert replace(result, select="worst_class").selected_on == "worst_class over 9 of 10 classes"
    assert replace(result, select="accuracy").selected_on == "accuracy"
    assert replace(RESULT, select="worst_group").selected_on == "worst_group"
    found = read(search(result))
    assert "The rule worst_group over 2 of 4 groups chose" in " ".join(found.text.split())
    assert "Test worst of 2 of 4 groups" in found.tables["Trials"][0]
    assert "Its test worst of 2 of 4 groups" in found.tables["Selection rules"][0]
    assert "Worst of 2 of 4 groups" in found.tables["Winner and default on the test split"][0]


@pytest.mark.parametrize(
    ("worst", "said"),
    [
        ({"aver": 0.4, "agre_kd": 0.35}, "AVER is the best"),
        ({"aver": 0.4, "agre_kd": 0.35}, "The next is AGRE-KD: −5.0 points"),
        ({"agre_kd": 0.35}, "AGRE-KD is the best distilled student: 35.0 % on the worst group."),
        ({"aver": 0.4}, "There is no other"),
        ({"one_hot": 0.4}, "No distilled student"),
        ({"aver": math.nan, "agre_kd": 0.3}, "30.0 % on the worst group."),
        ({}, "No distilled student"),
    ],
)
def test_headlines(worst, said):
    assert said in headline([student(method, 0, share) for method, share in worst.items()])


def test_a_method_that_shares_no_seed_with_aver_is_not_held_against_it():
    assert "against" not in headline([student("agre_kd", 0, 0.4), student("aver", 1, 0.2)])
    said = headline([student("agre_kd", 0, 0.1), student("aver", 1, 0.2)])
    assert "The next is AGRE-KD: 10.0 % on the worst group. All of it is over 1 seed" in said


def test_remarks_name_what_the_headline_leaves_out():
    shares = {"one_hot_dfr": 0.6, "aver": 0.2, "ae_kd": 0.5, "agre_kd": 0.4}
    ours, reference = remarks([student(method, 0, share) for method, share in shares.items()])
    assert ours == "AGRE-KD against AVER: +20.0 points (1 seed)."
    assert reference.startswith("One-hot + DFR, a reference without distillation, does better")
    assert remarks([student("aver", 0, 0.2), student("one_hot", 0, 0.1)]) == []


def test_a_page_says_which_students_lost_teachers(job):
    whole, lost = (student("agre_kd", seed, 0.4, ("erm-0", "dfr-1")) for seed in (0, 1))
    last = replace(lost.history[-1], steps=10, lost_steps={"erm-0": 7})
    page = read(job(outcomes=[whole, replace(lost, history=[last])]))
    assert "Degraded: AGRE-KD, seed 1: without erm-0 for 7 of 10 steps, from epoch" in page.text
    assert "seed 0: without" not in page.text


def test_plots_are_inline_and_have_captions(job):
    folder = job()
    for name in ("training_curves", "zoo_of-mine", "worst_group_by_method", "weights_by_group"):
        (folder / "plots" / f"{name}.png").write_bytes(PIXEL)
    (folder / "plots" / "notes.txt").write_text("no picture")
    (folder / "plots" / ".draft.png").write_bytes(b"half")
    found = read(folder)
    sources = found.attributes("img", "src")
    assert len(sources) == 4
    assert {base64.b64decode(s.removeprefix("data:image/png;base64,")) for s in sources} == {PIXEL}
    captions = found.attributes("img", "alt")
    assert captions[:2] == [page.CAPTIONS[n] for n in ("worst_group_by_method", "training_curves")]
    assert captions[2:] == ["Zoo of mine.", page.CAPTIONS["weights_by_group"]]


def test_a_search_is_on_its_page(search):
    folder = search()
    found = read(folder)
    assert found.headline == "The winner is better than the default."
    for text in (
        "24 November 2026, 09:00 UTC",
        str(folder),
        "give that to agrekd tune",
        "optuna (seed 3)",
        "asha (grace 2, reduction 3)",
        "4 trials",
        "4: 2 finished, 1 failed, 1 stopped early",
        "in each trial 0; for winner and default 100, 101",
        "Test data never selected.",
        "+5.0 points (95 % bootstrap interval +5.0 … +5.0, 2 seeds)",
        "loguniform:",
        "learning_rate: 0.05",
    ):
        assert text in found.text
    assert found.tables["Search space"][1:] == [
        ["strategy", "one of aver, agre_kd", ""],
        ["distillation.temperature", "real, logarithmic, 1 … 16", ""],
        [
            "distillation.agre_kd.fallback",
            "one of uniform, skip",
            "distillation.alpha = 0.5 or 1; strategy = agre_kd",
        ],
    ]


def test_the_trials_are_sorted_by_the_rule_that_selected(search):
    found = read(search()).tables["Trials"]
    head = ["Trial", "strategy", "temperature", "fallback", "State", "Epochs"]
    assert found[0] == [*head, "Score, contradicted", "Test worst group", "Seconds"]
    assert [row[0] for row in found[1:5]] == ["trial-001", "trial-003", "trial-000", "trial-002"]
    assert found[1] == [
        *("trial-001", "agre_kd", "1.235", "skip", "finished", "1/3", "70.0", "25.0", "12")
    ]
    assert found[2][:5] == ["trial-003", "aver", "5.5", "–", "stopped early"]
    assert found[4][4:] == ["failed", "0/3", "–", "–", "12"]
    assert found[5] == ["the student diverged"]


def test_the_rules_are_held_against_the_truth(search):
    found = read(search())
    assert found.row("Selection rules", "worst_group") == [
        *("worst_group", "groups, labels", "+0.90", "3", "trial-000", "25.0")
    ]
    assert found.row("Selection rules", "contradicted")[1:3] == ["teachers", "−0.31"]
    assert found.row("Selection rules", "accuracy")[2] == "–"
    html = (search() / "report.html").read_text()
    assert re.findall(r'<tr class="strong noted">\s*<th[^>]*>([^<]*)', html) == ["contradicted"]


def test_the_winner_stands_beside_the_default(search):
    found = read(search())
    assert found.tables["The winner's setting"] == [
        ["Parameter", "Winner, trial 1", "Default"],
        ["strategy", "agre_kd", "agre_kd"],
        ["distillation.temperature", "1.235", "2"],
        ["distillation.agre_kd.fallback", "skip", "null"],
    ]
    compared = found.tables["Winner and default on the test split"]
    assert [row[:2] for row in compared[2:]] == [
        ["Winner (trial 1)", "50.0 ± 0.0"],
        ["Default", "45.0 ± 0.0"],
    ]
    assert ["Winner (trial 1)", "aligned", "0.250", "0.500"] in found.tables["Who taught whom"]


def test_a_search_without_winner_has_a_page(search):
    trials = [replace(TRIALS[2], state="running", reason=None)]
    about = {k: v for k, v in RESULT.about.items() if k not in ("members", "effort", "seconds")}
    bare = SearchResult("temperature", "elsewhere", "contradicted", None, trials, about=about)
    found = read(search(bare))
    assert found.headline == "The search has no winner: no trial has a score."
    assert "No students were trained after the search." in found.text
    assert found.row("Trials", "trial-002")[4] == "running"
    assert not {"Teachers on the test split", "Selection rules"} & set(found.tables)


HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=http://evil.example/x onerror='alert(1)'>",
    "</style></title><link rel=stylesheet href=//evil.example>",
    "{{ 7 * 7 }}{% raw %}",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_file_holds_stays_text(job, search, name):
    worst = replace(metrics(0.3), groups={name: 0.3, "b": 0.9}, counts={name: 7, "b": 90})
    history = [Epoch(0, 1.0, 0.1, 1.0, worst, {name: {name: 0.5}})]
    odd = StudentResult(name, 0, name, {"test": worst}, history)
    member = TeacherResult(name, name, name, {"test": worst})
    about = dict.fromkeys(("name", "folder"), name) | {"classes": [name], "groups": [name]}
    about["versions"] = {name: name}
    about["settings"] = SETTINGS | {"data": {"name": name, name: name}}
    folder = job([odd], [member], **about)
    (folder / "plots" / f"{name.replace('/', '-')}.png").write_bytes(PIXEL)
    kept = read(folder)
    setting = {"strategy": name, "distillation.temperature": name}
    failed = replace(TRIALS[2], setting=setting, reason=name)
    changes = {"classes": [name], "settings": SEARCH | {"job": name}}
    result = replace(
        RESULT, name=name, verdict=name, winner=2, trials=[failed], about=RESULT.about | changes
    )
    for found in (kept, read(search(result))):
        assert found.text.count(name) > 5
        assert {tag for tag, _ in found.tags}.isdisjoint({"script", "link", "iframe", "object"})
        assert not [a for _, found_ in found.tags for a in found_ if a.startswith("on")]
        assert all(s.startswith("data:image/png;base64,") for s in found.attributes("img", "src"))
    assert name in kept.tables["Methods on the test split"][1]


def test_nothing_is_fetched_and_no_script_runs(job, search):
    for folder in (job(), search()):
        (folder / "plots" / "trial_history.png").write_bytes(PIXEL)
        found = read(folder)
        linked = [
            (tag, name, value)
            for tag, attributes in found.tags
            for name, value in attributes.items()
            if name in ("src", "href", "srcset", "data", "action", "poster", "background")
        ]
        assert [value.partition(",")[0] for *_, value in linked] == ["data:image/png;base64"]
        assert not re.search(r"url\(|@import|http|//", found.style)
        assert "script" not in {tag for tag, _ in found.tags}
        (policy,) = (c for c in found.attributes("meta", "content") if "default-src" in c)
        assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_half_a_character_does_not_stop_the_page(job):
    path = job(name="odd") / "results.json"
    path.write_text(path.read_text().replace('"odd"', '"odd\\ud800"'))
    assert "odd\ufffd" in read(path.parent).text


def test_the_page_goes_where_it_is_told(job, tmp_path):
    folder, output = job(), tmp_path / "new" / "mine.html"
    assert write_report(folder, output) == output
    assert "AGRE-KD" in output.read_text()
    assert not (folder / "report.html").exists()


def test_latest_is_a_run_like_any_other(job, tmp_path):
    (tmp_path / "latest").symlink_to(job())
    assert write_report(tmp_path / "latest") == job() / "report.html"


def test_an_output_that_cannot_be_written(job, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"report\.html: cannot be written .*--output"):
        write_report(job(), tmp_path / "file" / "report.html")
    for folder in (job(), Path("/"), Path()):
        with pytest.raises(RunError, match=f"^{folder}: is a folder.*--output"):
            write_report(job(), folder)
    assert not list(tmp_path.glob("**/*.html"))


def test_a_failed_write_leaves_the_old_page(job, monkeypatch):
    folder = job()
    before = write_report(folder).read_text()

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(RunError, match="No space left"):
        write_report(folder)
    assert (folder / "report.html").read_text() == before


def test_headlines_in_the_list_of_runs(job, search):
    assert headline_of(Ran(job(), "job", "finished", {})) == headline(OUTCOMES)
    assert headline_of(Ran(search(), "search", "finished", {})) == RESULT.verdict


@pytest.mark.parametrize("name", [".", "plots", "nowhere"])
def test_a_folder_that_is_no_run(tmp_path, name):
    (tmp_path / "plots").mkdir()
    with pytest.raises(RunError, match=r"no run there.*runs/JOB/latest"):
        write_report(tmp_path / name)


@pytest.mark.parametrize("file", ["job.yaml", "search.yaml"])
def test_a_run_that_is_not_finished(tmp_path, file):
    (tmp_path / file).write_text("name: digits\n")
    with pytest.raises(RunError, match=f"not finished.*agrekd resume {tmp_path}"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda _: "",
        lambda _: "[]",
        lambda _: "null",
        lambda _: "[" * 100_000,
        lambda text: text.replace('"worst_group_accuracy"', '"worst"'),
        lambda text: text.replace('"classes": ["0"', '"classes": [["0"]'),
        lambda text: text.replace('"seeds": [0', '"seeds": ["zero"'),
        lambda text: text.replace('"splits": {', '"splits": 7, "no": {'),
        lambda text: re.sub(r'"seconds": [\d.]+', '"seconds": "long"', text),
    ],
)
@pytest.mark.parametrize("kind", ["job", "search"])
def test_damaged_results(request, kind, damage):
    folder = request.getfixturevalue(kind)()
    path = folder / "results.json"
    text = json.dumps(json.loads(path.read_text()))
    assert damage(text) != text
    path.write_text(damage(text))
    with pytest.raises(RunError, match=r"results\.json: damaged \(.*agrekd resume") as caught:
        write_report(folder)
    assert len(str(caught.value)) < 400
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match="damaged"):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_a_picture_says_how_wide_it_is_so_that_a_phone_shows_its_letters(job):
    folder = job()
    save(new_figure(9.2, 4), folder / "plots" / "training_curves.png")
    page = write_report(folder).read_text()
    assert 'style="--inches: 9.2"' in page
    assert "width: max(100%, var(--inches) * 4.6rem)" in page  # 10 pt are 10 px there
