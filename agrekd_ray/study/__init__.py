"""A study: one job swept over settings and over draws of data and teachers."""
