"""Where a run reports to: nowhere, or a Prefect server."""
