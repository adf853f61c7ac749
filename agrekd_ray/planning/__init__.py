"""What a job will take, before anything is bought or started: `agrekd plan`."""
