"""The report: one page, `report.html`, that shows a whole output to a person."""
