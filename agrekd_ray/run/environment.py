"""Settings that Ray reads from the environment, some of them when it is imported."""

from __future__ import annotations

import os


def prepare(starts_cluster: bool) -> None:
    """Set what the user has not set. Call it before anything imports Ray.

    Args:
        starts_cluster: whether this process starts its own cluster.
    """
    wanted = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # The behaviour to come; without it Ray prints a notice about it.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # How often Train's controller looks whether a worker has died or all have ended.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    }
    if starts_cluster:
        # A token is what Ray uses here anyway; naming it spares the user Ray's notice of it.
        wanted["RAY_AUTH_MODE"] = "token"
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
