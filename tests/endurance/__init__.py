"""What takes long: every row of the fault table at random moments, and a soak; `make endurance`."""
