"""Decides where work runs: the stages of a run, and the fan-out that sends jobs to workers."""
