"""Runs held against each other: out of MLflow, as a table, files and pictures."""
