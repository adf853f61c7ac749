"""`agrekd report`: the page of a job, a study or a search, out of its folder."""
