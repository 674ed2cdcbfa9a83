"""The mathematics behind segmenters: histograms and thresholds, samples and clusters, modes,
windows.
"""
