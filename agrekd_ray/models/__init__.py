"""Models: builders by name, and checkpoints that hold no code."""

from agrekd_ray.models.builders import BUILDERS, Classifier, Model, build, check, check_name
from agrekd_ray.models.checkpoint import Manifest, check_classes, load, read_manifest, save

__all__ = [
    "BUILDERS",
    "Classifier",
    "Manifest",
    "Model",
    "build",
    "check",
    "check_classes",
    "check_name",
    "load",
    "read_manifest",
    "save",
]
