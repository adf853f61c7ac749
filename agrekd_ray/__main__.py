"""`python -m agrekd_ray` is the command `agrekd`."""

from agrekd_ray.cli import main

main()
