"""Group-robust distillation of large teacher ensembles on Ray (AGRE-KD).

`docs/python.md` has what can be done from Python, `docs/architecture.md` how it is built. The names
below are imported as they are first used, so that the command line starts at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agrekd_ray.api import (
        Run,
        Search,
        compare,
        load,
        record,
        resume,
        run,
        tune,
    )
    from agrekd_ray.core.competence import competence
    from agrekd_ray.core.groups import metric
    from agrekd_ray.core.kd import kd_gradient, kd_loss
    from agrekd_ray.core.loss import Distillation, DistillationLoss
    from agrekd_ray.core.selection import selection_rule
    from agrekd_ray.core.strategies import strategy
    from agrekd_ray.core.weighting import SampleWeighting, weigh
    from agrekd_ray.data.custom import dataset
    from agrekd_ray.errors import AgrekdError
    from agrekd_ray.models.classifier import model
    from agrekd_ray.own import DistilledStudent, distill
    from agrekd_ray.teachers.kinds import debiased
    from agrekd_ray.trained import TrainedStudent, open_student

__version__ = "0.1.0"

_VERBS = ["compare", "load", "record", "resume", "run", "tune"]
_PLACES = {
    "api": ["Run", "Search", *_VERBS],
    "core.competence": ["competence"],
    "core.groups": ["metric"],
    "core.kd": ["kd_gradient", "kd_loss"],
    "core.loss": ["Distillation", "DistillationLoss"],
    "core.selection": ["selection_rule"],
    "core.strategies": ["strategy"],
    "core.weighting": ["SampleWeighting", "weigh"],
    "data.custom": ["dataset"],
    "errors": ["AgrekdError"],
    "models.classifier": ["model"],
    "own": ["DistilledStudent", "distill"],
    "teachers.kinds": ["debiased"],
    "trained": ["TrainedStudent", "open_student"],
}
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names}

__all__ = [
    "AgrekdError",
    "Distillation",
    "DistillationLoss",
    "DistilledStudent",
    "Run",
    "SampleWeighting",
    "Search",
    "TrainedStudent",
    "__version__",
    "compare",
    "competence",
    "dataset",
    "debiased",
    "distill",
    "kd_gradient",
    "kd_loss",
    "load",
    "metric",
    "model",
    "open_student",
    "record",
    "resume",
    "run",
    "selection_rule",
    "strategy",
    "tune",
    "weigh",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_PLACE_OF[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
