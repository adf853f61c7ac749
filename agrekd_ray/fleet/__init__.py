"""Ray actors of teachers: their processes, the weighting actor, replicas, records lent to nodes."""
