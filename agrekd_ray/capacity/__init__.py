"""Whether a cluster is fit for a job, and what a job would take: `agrekd doctor`, `agrekd plan`."""
