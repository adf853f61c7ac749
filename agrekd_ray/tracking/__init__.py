"""What stays of a job: MLflow runs, comparison tables and plots. Only the driver writes them."""
