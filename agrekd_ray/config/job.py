"""The whole vocabulary of a job: its keys, their kinds, defaults and meanings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    WithJsonSchema,
    create_model,
    model_validator,
)

from agrekd_ray.addresses import store_address
from agrekd_ray.cluster.address import cluster_address
from agrekd_ray.cluster.fleet_settings import FleetSettings
from agrekd_ray.config.sweep import Sweep
from agrekd_ray.core.weighting import STRATEGIES, SampleWeighting
from agrekd_ray.data import DataSettings
from agrekd_ray.logits import OutputSettings
from agrekd_ray.passwords import hidden
from agrekd_ray.results.points import Published
from agrekd_ray.settings import (
    LocalPath,
    OpenSettings,
    Positive,
    Seed,
    Settings,
    Share,
    one_of,
    options_of,
)
from agrekd_ray.student import StudentSettings
from agrekd_ray.teachers import KINDS, EnsembleSettings, TeacherSettings

BASELINES = ("one_hot", "one_hot_dfr", "deep_ensemble", "deep_ensemble_dfr", "teacher_vote")
"""Methods without distillation."""
DFR_METHODS = ("one_hot_dfr", "deep_ensemble_dfr")
"""Methods that retrain last layers, by group labels."""
SEEDS_APART = 1000
"""Members of one seed's deep ensemble have seeds (seed + 1) * SEEDS_APART + 0, 1, 2, ..."""


def methods() -> tuple[str, ...]:
    """All methods, by name: the baselines, and every strategy that this process knows."""
    return (*BASELINES, *STRATEGIES)


Method = Annotated[str, BeforeValidator(one_of(methods)), WithJsonSchema({"enum": [*methods()]})]


PlotFormat = Literal["png", "pdf", "svg"]


class AgreKdOptions(Settings):
    """Options of `agre_kd`.

    Attributes:
        normalize: cosine (the paper) or plain dot product (its Table 6).
        fallback: what a sample gets whose weights are all 0: `uniform` or `skip`.
    """

    normalize: bool = True
    fallback: Literal["uniform", "skip"] = "uniform"


class AeKdOptions(Settings):
    """Options of `ae_kd`.

    Attributes:
        box: largest weight of a teacher; raised to 1/M where that is more.
    """

    box: Annotated[Positive, Field(le=1)] = 0.6


class SampleWeightingSettings(Settings):
    """Scale every sample by how far the ensemble answers from the biased model.

    Attributes:
        floor: added to the total variation distance.
        exponent: that the sum is raised to.
    """

    floor: Positive = 0.02
    exponent: Positive = 0.5

    def build(self) -> SampleWeighting:
        """As `core` takes it."""
        return SampleWeighting(self.floor, self.exponent)


class DistillationSettings(OpenSettings):
    """How the student is taught; options of a plugin's strategy are in a block of its name.

    Attributes:
        temperature: the paper's tau, which softens the answers of teachers and student; 1 does not.
        alpha: share of distillation in the objective; the rest is cross-entropy with labels.
        agre_kd: options of that strategy.
        ae_kd: options of that strategy.
        sample_weighting: on for every strategy, or null for off.
    """

    temperature: Positive = 4.0
    alpha: Share = 1.0
    agre_kd: AgreKdOptions = AgreKdOptions()
    ae_kd: AeKdOptions = AeKdOptions()
    sample_weighting: SampleWeightingSettings | None = None

    @classmethod
    def of_plugins(cls) -> type[Settings]:
        """A block of options for every strategy of plugins that has any."""
        blocks: dict[str, Any] = {}
        for name, strategy in STRATEGIES.items():
            taken = {*strategy.supplied}
            options = {key: of for key, of in strategy.options.items() if key not in taken}
            if name not in cls.model_fields and options:
                block = options_of(name, strategy.function, options)
                blocks[name] = (block, block())
        made: type[Settings] = create_model("Options of plugins", __base__=Settings, **blocks)
        return made


class TrackingSettings(Settings):
    """Where runs are recorded.

    Attributes:
        uri: of the MLflow store; null is a SQLite file in the runs folder. The path of a SQLite
            file becomes absolute, like every path of a job. A password in it is
            known to this process alone: `***` stands for it here and in all that is written,
            and MLFLOW_TRACKING_PASSWORD for `***`.
        experiment: name of the experiment; null takes the job's name.
        models: whether every student is kept there as a model too.
    """

    uri: Annotated[str, AfterValidator(store_address), AfterValidator(hidden)] | None = None
    experiment: str | None = None
    models: bool = True


def _joined(address: str | None) -> str | None:
    return None if address is None else cluster_address(address)


class RaySettings(Settings):
    """Which Ray cluster.

    Attributes:
        address: of a running cluster (`auto`, `host:port`, `[IPv6]:port`); null starts one here and
            ends it with the run.
    """

    address: Annotated[str | None, AfterValidator(_joined)] = None


class Job(Settings):
    """One job: a pool of teachers, and every method with every seed.

    Attributes:
        name: of the job; its runs are in `RUNS/NAME/`.
        data: the data set.
        teachers: the pool; may be left out where `ensemble` names checkpoints of all teachers and
            of the biased model.
        ensemble: who of the pool teaches.
        student: the student.
        distillation: how it is taught.
        methods: what is compared, in the order of the table.
        seeds: of the students: weights, order of the batches, dropout; a student each.
        sweep: makes the job a study: values by dotted key of the job; every combination is run.
        draws: of data and teachers, by number; makes the job a study, too. Draw 0 is the job.
        published: results of others to stand beside one's own.
        guidance: `auto` (recorded outputs of teachers where they are complete, else the fleet,
            which records), `live` (the fleet computes every answer, nothing is recorded) or
            `local` (everything in one process, without Ray and records).
        fleet: how live teachers are hosted.
        outputs: where teachers' outputs are recorded.
        tracking: MLflow.
        ray: the cluster.
        plugins: modules of one's own that register strategies, metrics, selection rules, data
            sets and models: a name beside the job or installed, a file, or a package's folder.
        plots: formats of the pictures: `png`, which the page shows, `pdf` and `svg`, for papers.
        runs: folder of all runs.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
    data: DataSettings
    teachers: TeacherSettings
    ensemble: EnsembleSettings = EnsembleSettings()
    student: StudentSettings
    distillation: DistillationSettings = DistillationSettings()
    methods: Annotated[tuple[Method, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    sweep: Sweep = Field(default_factory=dict)
    draws: tuple[Seed, ...] = ()
    published: Published | None = None
    guidance: Literal["auto", "live", "local"] = "auto"
    fleet: FleetSettings = FleetSettings()
    outputs: OutputSettings = OutputSettings()
    tracking: TrackingSettings = TrackingSettings()
    ray: RaySettings = RaySettings()
    plugins: tuple[str, ...] = ()
    plots: Annotated[tuple[PlotFormat, ...], Field(min_length=1)] = ("png",)
    runs: LocalPath = Path("runs")

    @model_validator(mode="before")
    @classmethod
    def _all_handed_in(cls, values: Any) -> Any:
        """Without `teachers`, where all of them and the biased model are checkpoints."""
        ensemble = values.get("ensemble") if isinstance(values, dict) else None
        if not isinstance(ensemble, dict) or "teachers" in values:
            return values
        if not ensemble.get("checkpoints") or ensemble.get("biased") is None:
            return values
        student = values.get("student")
        model = student.get("model") if isinstance(student, dict) else None
        return {**values, "teachers": {"model": model}, "ensemble": {"size": 0, **ensemble}}

    @property
    def retrains(self) -> bool:
        """Whether last layers are retrained by group labels (DFR)."""
        by_group = any(KINDS[kind].needs_groups for kind in self.ensemble.by_kind)
        return by_group or bool({*DFR_METHODS} & {*self.methods})

    @property
    def is_study(self) -> bool:
        """Whether it has several points, or published results to stand beside."""
        return bool(self.sweep or self.draws or self.published)
