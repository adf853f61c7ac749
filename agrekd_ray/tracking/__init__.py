"""What stays of a job: MLflow runs, comparison tables and plots. Only the driver writes them."""

import os

# Before a module of this package imports MLflow, which reports its use to its makers otherwise.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
