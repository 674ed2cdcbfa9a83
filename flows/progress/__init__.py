"""Progress on standard error of runs, of passes over items, and of trainings."""
