"""Settings that Ray reads from the environment, some of them when it is imported."""

from __future__ import annotations

import os
import secrets


def prepare(starts_cluster: bool) -> None:
    """Set what the user has not set. Call it before anything imports Ray.

    Args:
        starts_cluster: whether this process starts its own cluster.
    """
    wanted = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Nothing but our own `ray.init` starts a cluster, or joins one, whichever that may be; a
        # call before it, or after the cluster's end, is an error.
        "RAY_ENABLE_AUTO_CONNECT": "0",
        # The behaviour to come; without it Ray prints a notice about it.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # How often Train's controller looks whether a worker has died or all have ended.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        # A search shows its trials itself; Tune's own table, loggers and tracebacks are not wanted.
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        # Seconds between two snapshots of a search, from which a killed one is resumed.
        "TUNE_GLOBAL_CHECKPOINT_S": "1",
    }
    if starts_cluster:
        # A token is what Ray uses here anyway; naming it spares the user Ray's notice of it. It is
        # this cluster's own: Ray before 2.60.1 writes one that other users can read.
        wanted["RAY_AUTH_MODE"] = "token"
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:
            wanted["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        # A process of every worker group that waits for a cloud to take its nodes back: not these.
        wanted["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
