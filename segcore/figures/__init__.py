"""All pictures, from arrays and numbers: previews, and pictures of trainings, evaluations,
comparisons and audits. They are drawn in one style (`drawing`).
"""
