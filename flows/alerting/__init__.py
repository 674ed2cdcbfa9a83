"""Alerts: conditions on areas, zones and objects of a run, and who is told when they come true."""
