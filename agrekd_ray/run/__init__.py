"""The driver: one job from nothing to its table, and again from where it was stopped."""
