"""Models: builders by name, and checkpoints that hold no code.

To add an architecture, write a function `(shape, classes, **args) -> Classifier` under
`@model(NAME)`; a whole library of them is a `Family`.
"""

from agrekd_ray.models.builders import (
    adopt_folder,
    behind,
    build,
    check,
    check_name,
    check_tokens,
    identified,
)
from agrekd_ray.models.checkpoint import Manifest, check_classes, find, load, read_manifest, save
from agrekd_ray.models.classifier import BUILDERS, Classifier
from agrekd_ray.models.model import Model, Preprocessing, Shape, in_words

__all__ = [
    "BUILDERS",
    "Classifier",
    "Manifest",
    "Model",
    "Preprocessing",
    "Shape",
    "adopt_folder",
    "behind",
    "build",
    "check",
    "check_classes",
    "check_name",
    "check_tokens",
    "find",
    "identified",
    "in_words",
    "load",
    "read_manifest",
    "save",
]
