"""Whether a cluster is fit for a job: facts of every node, and what is wrong with them."""
