"""Jobs and studies: the driver, from nothing to the table, and again from where it was stopped."""
