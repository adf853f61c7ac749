# The image of every node of a cluster, and of the jobs that are submitted to it.
#   docker build -t agrekd_ray .
#   docker run --rm --shm-size=4g agrekd_ray agrekd run jobs/colored_digits.yaml
# For GPUs: --build-arg VARIANT=-gpu
ARG RAY_VERSION=2.60.0
ARG VARIANT=-cpu
FROM rayproject/ray:${RAY_VERSION}-py311${VARIANT}

USER ray
RUN mkdir -p /home/ray/agrekd_ray
WORKDIR /home/ray/agrekd_ray
COPY --chown=ray:users pyproject.toml constraints.txt README.md LICENSE ./
COPY --chown=ray:users agrekd_ray ./agrekd_ray
RUN pip install --no-cache-dir -c constraints.txt '.[textures]'
COPY --chown=ray:users jobs ./jobs
COPY --chown=ray:users tune_configs ./tune_configs
CMD ["agrekd", "--help"]
