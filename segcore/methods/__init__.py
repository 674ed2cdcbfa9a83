"""The mathematics behind segmenters: histograms, thresholds, samples, clusters, modes, windows."""
