"""Records a run with Prefect: the module-level flow, the orchestrator, the embedded server."""
