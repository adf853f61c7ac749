"""Jobs: YAML, then dotted overrides, then validation of everything."""

from agrekd_ray.config.checks import check_job, load_job
from agrekd_ray.config.faults import Fault, JobError, faults_of, names_at
from agrekd_ray.config.job import METHODS, Job
from agrekd_ray.config.reading import read_job

__all__ = [
    "METHODS",
    "Fault",
    "Job",
    "JobError",
    "check_job",
    "faults_of",
    "load_job",
    "names_at",
    "read_job",
]
