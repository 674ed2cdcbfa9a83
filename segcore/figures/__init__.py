"""All drawing: previews, training curves, evaluation pictures."""
