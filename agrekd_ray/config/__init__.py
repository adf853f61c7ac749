"""Jobs: YAML, then dotted overrides, then validation of everything."""

from agrekd_ray.config.checks import check_job, load_job
from agrekd_ray.config.faults import Fault, JobError, elsewhere, faults_of, names_at
from agrekd_ray.config.job import Job, methods
from agrekd_ray.config.reading import read_job, read_values

__all__ = [
    "Fault",
    "Job",
    "JobError",
    "check_job",
    "elsewhere",
    "faults_of",
    "load_job",
    "methods",
    "names_at",
    "read_job",
    "read_values",
]
