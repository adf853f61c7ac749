"""The command line: verbs and exit codes, nothing else."""

from __future__ import annotations

import atexit
import errno
import gc
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from agrekd_ray import __version__
from agrekd_ray.errors import AgrekdError
from agrekd_ray.stops import interrupt_on_stops
from agrekd_ray.streams import outlive_readers, say_when_lost
from agrekd_ray.terminal import in_utf8, prepare_streams, screen

if TYPE_CHECKING:
    from agrekd_ray.config import Job
    from agrekd_ray.experiment.folder import RunFolder
    from agrekd_ray.search.folder import SearchFolder

FAILED, INTERRUPTED = 1, 130
Tags = Annotated[
    list[str] | None, typer.Option(help="NAME=VALUE, a tag of the run in MLflow; several times.")
]
Note = Annotated[str, typer.Option(help="What the run is for; in MLflow and `agrekd runs`.")]
JobFile = Annotated[Path, typer.Argument(help="The job, a YAML file.", metavar="JOB")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Changes to the job: distillation.temperature=2", metavar="[KEY.PATH=VALUE]..."
    ),
]

StudentFolder = Annotated[
    Path,
    typer.Argument(help="Like runs/JOB/latest/students/agre_kd-seed-0.", metavar="STUDENT"),
]


class _Verbs(TyperGroup):
    """Says of a verb that was interrupted that it was: Typer would end it without a word."""

    def invoke(self, context: Any) -> Any:
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            screen(stderr=True).print("interrupted")
            raise SystemExit(INTERRUPTED) from None


app = typer.Typer(
    cls=_Verbs,
    help="Group-robust distillation of large teacher ensembles on Ray (AGRE-KD).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

data = typer.Typer(help="A job's data set.", no_args_is_help=True)
app.add_typer(data, name="data")
outputs = typer.Typer(help="Recorded outputs of teachers.", no_args_is_help=True)
app.add_typer(outputs, name="outputs")
teachers = typer.Typer(
    help="Teachers: the pool's, and those of other makers.", no_args_is_help=True
)
app.add_typer(teachers, name="teachers")
Store = Annotated[Path, typer.Option(help="The folder, a job's outputs.store.")]
STORE, RUNS = Path("runs/outputs"), Path("runs")


@app.command()
def run(job: JobFile, overrides: Overrides = None, tag: Tags = None, note: Note = "") -> None:
    """Train the pool of teachers and every method with every seed, and compare them."""
    from agrekd_ray.config import load_job
    from agrekd_ray.experiment.folder import RunFolder

    tags = _tags(tag)
    folder = RunFolder.create(load_job(job, overrides or []))
    folder.remark(overrides or [], tags, note)
    _run(folder)


def _tags(given: list[str] | None) -> dict[str, str]:
    """Tags by name, out of `NAME=VALUE`."""
    pairs = [pair.partition("=") for pair in given or []]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise typer.BadParameter(f"{name}: a tag is written NAME=VALUE", param_hint="--tag")
    return {name: value for name, _, value in pairs}


def _run(folder: RunFolder) -> None:
    if folder.job.is_study:
        from agrekd_ray.experiment.study import run_study

        _resumable(folder.path, lambda: run_study(folder, screen()))
        return
    from agrekd_ray.experiment.job import run_job

    _resumable(folder.path, lambda: run_job(folder, screen()))


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="Of the run, like runs/JOB/latest.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Changes that only place its work: fleet.cpus=1; any, where it has made nothing.",
            metavar="[KEY.PATH=VALUE]...",
        ),
    ] = None,
) -> None:
    """Go on with a job, study or search that was stopped or killed, where it was."""
    from agrekd_ray.experiment.folder import RunFolder
    from agrekd_ray.search.folder import SearchFolder

    if SearchFolder.holds(folder):
        _search(SearchFolder.open(folder, overrides or []))
        return
    _run(RunFolder.open(folder, overrides or []))


@app.command()
def record(job: JobFile, overrides: Overrides = None) -> None:
    """Record what a job's teachers say, in one pass; its runs then start no teacher."""
    from agrekd_ray.config import load_job
    from agrekd_ray.config.points import points_of
    from agrekd_ray.experiment.recording import record_job

    for _, point in points_of(load_job(job, overrides or [])):
        record_job(point, screen())


@app.command()
def tune(
    space: Annotated[Path, typer.Argument(help="The search, a YAML file.", metavar="SPACE")],
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the last run of this search.")
    ] = False,
    tag: Tags = None,
    note: Note = "",
) -> None:
    """Search temperature, weighting and other settings of a job; trials share its teachers."""
    from agrekd_ray.config.search import load_search
    from agrekd_ray.search.folder import SearchFolder

    tags = _tags(tag)
    planned = load_search(space, overrides or [])
    if resume:
        _search(SearchFolder.last(planned))
        return
    folder = SearchFolder.create(planned)
    folder.remark(overrides or [], tags, note)
    _search(folder)


def _search(folder: SearchFolder) -> None:
    from agrekd_ray.cluster.environment import prepare

    prepare(starts_cluster=folder.planned.base.ray.address is None)
    from agrekd_ray.search.driver import run_search  # imports Ray, which reads the environment

    _resumable(folder.path, lambda: run_search(folder, screen()))


class PlotFormat(StrEnum):
    """What pictures are written as."""

    png = "png"
    pdf = "pdf"
    svg = "svg"


@app.command()
def compare(
    ids: Annotated[
        list[str] | None,
        typer.Argument(
            help="Runs by id or folder; a job or search stands for its students or trials."
        ),
    ] = None,
    experiment: Annotated[
        list[str] | None, typer.Option(help="Look in this experiment; may be given again.")
    ] = None,
    filter: Annotated[
        str | None, typer.Option(help="In MLflow's words: params.method = 'agre_kd'.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Compare with this row, seed by seed; default: aver.")
    ] = None,
    sort: Annotated[str | None, typer.Option(help="Metric that orders the rows.")] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="A further column; may be given again.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write a CSV file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write a Markdown file.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Draw pictures into this folder.")] = None,
    format: Annotated[
        list[PlotFormat] | None,
        typer.Option(help="Of the pictures; may be given again; default: png."),
    ] = None,
    uri: Annotated[str | None, typer.Option(help="MLflow tracking URI.")] = None,
    runs: Annotated[Path, typer.Option(help="Folder with mlflow.db, without --uri.")] = RUNS,
) -> None:
    """Compare runs that are in MLflow: jobs, students, searches, trials."""
    from agrekd_ray.commands.compare import compare as compared

    compared(
        screen(),
        ids=ids or [],
        experiments=experiment or [],
        filter=filter,
        uri=uri,
        runs=runs,
        baseline=baseline,
        sort=sort,
        metrics=metric or [],
        csv=csv,
        markdown=markdown,
        plots=plots,
        formats=[one.value for one in dict.fromkeys(format or [PlotFormat.png])],
    )


@app.command()
def report(
    folder: Annotated[
        Path, typer.Argument(help="Of a job or search, like runs/JOB/latest, or its id in MLflow.")
    ],
    output: Annotated[Path | None, typer.Option(help="The file; default: report.html.")] = None,
    runs: Annotated[Path, typer.Option(help="Where a run of that id is looked for.")] = RUNS,
) -> None:
    """Write one page about a job, study or search that can be mailed: all in one HTML file."""
    from agrekd_ray.commands.runs import folder_of
    from agrekd_ray.report.page import write_report

    print(write_report(folder_of(folder, runs), output))


@app.command()
def init(
    source: Annotated[
        Path,
        typer.Argument(
            help="A table (CSV, Parquet), or a folder of pictures with a folder for each class.",
            metavar="TABLE|FOLDER",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The job's file.")] = Path(
        "job.yaml"
    ),
    label: Annotated[
        str | None, typer.Option(help="Column with the class; default: looked for.")
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(help="Column with a spurious attribute; may be given again."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Of texts: a folder, or a name of the Hugging Face hub.")
    ] = None,
) -> None:
    """Write a complete, commented job for a table or folder of one's own, having looked at it."""
    from agrekd_ray.commands.init import init as written

    written(source, output, label, group or [], tokenizer, screen())


@app.command()
def predict(
    student: StudentFolder,
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Pictures, a folder of pictures, or a table (CSV, Parquet) of paths or texts.",
            metavar="IMAGES|TABLE",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The CSV file; default: printed.")
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="Of the table; default: that of the job.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder that the table's paths are relative to.")
    ] = None,
    job: Annotated[
        Path | None, typer.Option(help="Job or run that says what data are, for a teacher.")
    ] = None,
) -> None:
    """Classes and probabilities of pictures or texts, by a finished student."""
    from agrekd_ray.commands.predict import predict as predicted

    predicted(student, sources, output, column, images, job, screen())


@app.command()
def export(
    student: StudentFolder,
    to: Annotated[
        str | None,
        typer.Option(help="torch (a .pt2 program), safetensors (weights alone), or onnx."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file; default: NAME.pt2 and so on.")
    ] = None,
    register: Annotated[
        str | None, typer.Option(help="A name in MLflow's registry of models for a run's student.")
    ] = None,
    alias: Annotated[
        str | None, typer.Option(help="Of the registered model; it moves to this version.")
    ] = None,
) -> None:
    """A finished student as a file that runs without this package, or under a name in MLflow."""
    from agrekd_ray.commands.export import export as exported
    from agrekd_ray.commands.export import register as registered
    from agrekd_ray.trained import open_student

    if to is None and register is None:
        raise typer.BadParameter("say --to KIND, --register NAME, or both")
    if to is not None:
        for path in exported(open_student(student), to, output or Path(student.resolve().name)):
            print(path)
    if register is not None:
        print(registered(student, register, alias))


@app.command()
def keys(
    pattern: Annotated[
        str, typer.Argument(help="Part of a key, or a whole one with *: student.training.*")
    ] = "",
) -> None:
    """Every key of a job: default, allowed values, meaning."""
    from agrekd_ray.commands.keys import reference

    print(reference(pattern))


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="The folder of all runs, a job's `runs`.")] = RUNS,
) -> None:
    """Jobs, studies and searches that were run: when, how they stand, their headline."""
    from agrekd_ray.commands.runs import show_runs

    show_runs(folder, screen())


@app.command()
def validate(job: JobFile, overrides: Overrides = None) -> None:
    """Check a job or a search whole, without starting anything: all its faults at once."""
    from agrekd_ray.config import load_job, read_values
    from agrekd_ray.config.search import load_search
    from agrekd_ray.config.sweep import settings_of

    if "space" in (read_values(job, overrides or [])[0] or {}):
        planned = load_search(job, overrides or [])
        search = planned.search
        print(f"{job}: valid ({search.searcher.name} search over {len(search.space)} keys)")
        _remark(planned.base)
        return
    checked = load_job(job, overrides or [])
    points = len(settings_of(checked.sweep, checked.draws))
    study = f" at {points} points" if points > 1 else ""
    print(f"{job}: valid ({len(checked.methods)} methods × {len(checked.seeds)} seeds{study})")
    _remark(checked)


def _remark(job: Job) -> None:
    from agrekd_ray.config.points import remarks_of, remarks_on_biased

    for remark in remarks_of(job):
        print(f"  data: {remark}")
    for remark in remarks_on_biased(job):
        print(f"  ensemble: {remark}")


@app.command()
def doctor(
    job: Annotated[
        Path | None, typer.Argument(help="The job; without one, the cluster alone.", metavar="JOB")
    ] = None,
    overrides: Overrides = None,
    address: Annotated[
        str | None, typer.Option(help="Of the cluster; default: the job's ray.address, or none.")
    ] = None,
) -> None:
    """Ask every node of a cluster whether a job can run there; exit code 1 where it cannot."""
    from agrekd_ray.capacity.doctor import doctor as examined

    if not examined(job, overrides or [], address, screen()):
        raise typer.Exit(FAILED)


@teachers.command("import")
def import_teacher(
    file: Annotated[
        Path,
        typer.Argument(
            help="A state dict (safetensors, torch.save), a folder of transformers or timm, or an "
            "exported program (.pt2).",
            metavar="FILE",
        ),
    ],
    job: Annotated[Path, typer.Option(help="The job whose data it shall teach on.")],
    name: Annotated[str, typer.Option(help="Of the checkpoint.")],
    model: Annotated[str, typer.Option(help="Architecture, like torchvision/resnet50.")] = "",
    model_args: Annotated[
        list[str] | None,
        typer.Option(help="Its arguments, KEY=VALUE; may be given again.", metavar="KEY=VALUE"),
    ] = None,
    small_stem: Annotated[bool, typer.Option("--small-stem", help="See models in a job.")] = False,
    preprocess: Annotated[
        str | None, typer.Option(help="imagenet, or {size: 224, mean: [...], std: [...]}.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Names in the order of its logits, with commas between.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Which set of weights, where there are several, like ema.")
    ] = None,
    expect: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="Per cent right by its makers; far from it is said."),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Read a program, which can run code hidden in it.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Turn a model of another maker into a checkpoint that can teach on a job's data."""
    from agrekd_ray.commands.teachers import import_for, show_imported

    imported, dataset = import_for(
        job,
        overrides or [],
        file,
        name,
        {
            "name": model,
            "args": model_args or [],
            "small_stem": small_stem,
            "preprocess": preprocess,
        },
        classes.split(",") if classes else None,
        trust,
        weights,
        expect,
    )
    show_imported(imported, dataset, screen())


@teachers.command("list")
def list_teachers(job: JobFile, overrides: Overrides = None) -> None:
    """A job's teachers and those imported: architecture, kind, metrics, where they are."""
    from agrekd_ray.commands.teachers import list_teachers as listed
    from agrekd_ray.config import load_job

    listed(load_job(job, overrides or []), screen())


@teachers.command("evaluate")
def evaluate_teachers(
    job: JobFile,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Teachers, those of the job by default; changes to it.",
            metavar="[NAME | KEY.PATH=VALUE]...",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write a CSV file.")
    ] = None,
) -> None:
    """Accuracy by group of every teacher and of the biased model, on validation and test."""
    from agrekd_ray.commands.teachers import evaluate_teachers as evaluated
    from agrekd_ray.config import load_job

    given = names or []
    overrides = [text for text in given if "=" in text]
    wanted = [text for text in given if "=" not in text]
    evaluated(load_job(job, overrides), wanted, output, screen())


@data.command("check")
def check_data(
    job: JobFile,
    overrides: Overrides = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="Tables and file names only; open no sample.")
    ] = False,
) -> None:
    """What a job's data are, and whether they are whole; exit code 1 where a sample is broken."""
    from agrekd_ray.commands.data import check_data as checked

    if not checked(job, overrides or [], fast, screen()):
        raise typer.Exit(FAILED)


@data.command("show")
def show_data(
    job: JobFile,
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The PNG; default: NAME-data.png.")
    ] = None,
    examples: Annotated[int, typer.Option(min=1, max=50, help="Of each group.")] = 8,
    epoch: Annotated[
        int | None, typer.Option(min=0, help="As the training of this epoch shows them.")
    ] = None,
) -> None:
    """Draw examples of every group, with counts; print excerpts where the data are text."""
    from agrekd_ray.commands.data import show_data as shown

    shown(job, overrides or [], output, examples, epoch, screen())


@outputs.command("list")
def list_outputs(store: Store = STORE) -> None:
    """Whose outputs are recorded, and what they take on disk."""
    from agrekd_ray.logits.report import show

    show(store, screen())


@outputs.command("verify")
def verify_outputs(store: Store = STORE) -> None:
    """Read every record and compare its checksum; exit code 1 where one is damaged."""
    from agrekd_ray.logits.report import check

    if not check(store, screen()):
        raise typer.Exit(FAILED)


@outputs.command("prune")
def prune_outputs(
    store: Store = STORE,
    days: Annotated[
        float, typer.Option(min=0, help="Remove what no run has used for so many days.")
    ] = 30,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be removed.")] = False,
) -> None:
    """Remove records that have long not been used; a run that needs them makes them again."""
    from agrekd_ray.logits.report import remove

    remove(store, days, screen(), keep=dry_run)


@app.command()
def plan(
    job: JobFile,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(help="Machines, all alike.")] = 1,
    gpus: Annotated[int, typer.Option(help="GPUs of each.")] = 0,
    cpus: Annotated[
        int | None, typer.Option(help="Cores of each; default: as many as here.")
    ] = None,
    memory_gb: Annotated[float, typer.Option(help="Memory of each, GB.")] = 64,
    network_gbit: Annotated[float, typer.Option(help="Each one's network link, Gbit/s.")] = 10,
    latency_us: Annotated[
        float, typer.Option(help="Of a message from one to another, microseconds.")
    ] = 100,
    disk_mb: Annotated[float, typer.Option(help="What the folder of records takes, MB/s.")] = 500,
    forward_ms: Annotated[
        float | None,
        typer.Option(help="One teacher's forward pass over a whole batch, milliseconds."),
    ] = None,
    step_ms: Annotated[
        float | None,
        typer.Option(help="A student worker's step on its part of a batch, on labels alone, ms."),
    ] = None,
    inputs_ms: Annotated[
        float | None, typer.Option(help="Reading a batch's samples, milliseconds.")
    ] = None,
    forward_busy: Annotated[
        float | None, typer.Option(help="Share of its device that a forward pass takes, 0 to 1.")
    ] = None,
    times: Annotated[
        Path | None, typer.Option(help="YAML with these, and `costs`; options count before it.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Take the times here, with the job's own models.")
    ] = False,
    classes: Annotated[
        int | None, typer.Option(min=2, help="C, for data that are not here, or others.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Of the training split, likewise.")
    ] = None,
    weighting_actors: Annotated[
        int | None,
        typer.Option(min=1, help="1 or one a student worker; default: what is worth it."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the forecast here.")
    ] = None,
) -> None:
    """What a job would take on other machines, what holds it up, and what would help."""
    from agrekd_ray.capacity.plan import plan as planned

    planned(
        job,
        overrides or [],
        screen(),
        machines={
            "nodes": nodes,
            "gpus": gpus,
            "cpus": os.cpu_count() if cpus is None else cpus,
            "memory_gb": memory_gb,
            "gbit": network_gbit,
            "latency_us": latency_us,
            "disk_mb": disk_mb,
        },
        times={
            "forward_ms": forward_ms,
            "step_ms": step_ms,
            "inputs_ms": inputs_ms,
            "forward_busy": forward_busy,
        },
        times_file=times,
        measure=measure,
        classes=classes,
        samples=samples,
        weighting_actors=weighting_actors,
        json_file=json_file,
    )


@app.command()
def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="small, latency, resnet, data, gpu, plan, search; all of these by default. And "
            "scale: replay at the size of ImageNet, which writes 20 GB for a while."
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Epochs that count, of each way.")] = 5,
    quick: Annotated[bool, typer.Option(help="Smaller, without ResNets; two minutes.")] = False,
    teachers: Annotated[int | None, typer.Option(min=2, help="Of scale; 50.")] = None,
    classes: Annotated[int | None, typer.Option(min=40, help="Of scale; 1,000.")] = None,
    rows: Annotated[int | None, typer.Option(min=1024, help="Of scale; 100,000.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write figures here.")
    ] = None,
) -> None:
    """What distillation costs, in training steps of the student alone."""
    from agrekd_ray.bench.command import bench as measured

    sizes = {"teachers": teachers, "classes": classes, "rows": rows}
    measured(names or [], repeats, quick, json_file, screen(), **sizes)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"agrekd {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def _resumable(folder: Path, work: object) -> None:
    say_when_lost(f"It goes on: {folder}")
    try:
        work()  # type: ignore[operator]
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        said = f"To go on where it stopped: agrekd resume {folder}"
        print(f"{'Interrupted. ' * interrupted}{said}", file=sys.stderr)
        if isinstance(error, AgrekdError):
            print("Changes that only place its work may follow: fleet.cpus=1", file=sys.stderr)
        if interrupted:
            raise SystemExit(INTERRUPTED) from None
        raise


def main() -> None:
    """Entry point: a person's errors become one message; the exit code says what happened."""
    in_utf8()
    outlive_readers()
    prepare_streams()
    # Python looks for garbage among all that Ray, MLflow and PyTorch have made: often while they
    # are imported, and once more as it ends. That is a second or two, for nothing.
    gc.set_threshold(10_000)
    atexit.register(gc.freeze)
    errors = screen(stderr=True, soft_wrap=True)
    interrupt_on_stops()
    try:
        app()
    except AgrekdError as error:
        errors.print(f"error: {error}", style="red")
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" {error.filename}" if error.filename else ""
        errors.print(
            f"error: the disk is full: cannot write{where}. Free it; what is finished stays.",
            style="red",
        )
        sys.exit(FAILED)
    except Exception as error:
        if all(kind.__module__ != "ray.exceptions" for kind in type(error).__mro__):
            raise  # a fault of ours
        from agrekd_ray.cluster.channel import plain_error

        errors.print(f"error: {plain_error(error, 'Ray')}", style="red")
        sys.exit(FAILED)
