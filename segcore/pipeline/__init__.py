"""The work on one image: jobs, tiles, results, and the records of a run."""
