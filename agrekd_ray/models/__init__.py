"""Models: builders by name, and checkpoints that hold no code."""

from agrekd_ray.models.builders import BUILDERS, Classifier, Model, build, check
from agrekd_ray.models.checkpoint import Manifest, load, read_manifest, save

__all__ = [
    "BUILDERS",
    "Classifier",
    "Manifest",
    "Model",
    "build",
    "check",
    "load",
    "read_manifest",
    "save",
]
