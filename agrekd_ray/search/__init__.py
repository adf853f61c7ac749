"""`agrekd tune`: a search whose trials share one record of what the teachers say."""
