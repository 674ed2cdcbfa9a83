"""All drawing with PIL, from arrays and numbers: previews, and pictures of trainings, evaluations,
comparisons and audits.
"""
