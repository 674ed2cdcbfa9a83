"""Dice of brain tissue by clusters, with and without smoothing and noise.

    MASKLOOM_TEST_DATA=FOLDER python tests/benchmarks/bench_tissue.py

On `mri_mni152` of the test images: the average T1 brain ICBM 152 (2009) without the skull, and
labels made of its maps of grey and white matter (fluid is what is left). Noise is Gaussian, added
before rounding to 8 bits.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from maskloom.segcore.segmenters.kmeans import KMeans
from maskloom.segcore.segmenters.mixture import MixtureOfGaussians
from maskloom.segcore.testing.segmenters import Picture, fitted, labelled

SIGMAS = (0, 10, 15, 20)
TISSUES = ("csf", "grey", "white")
MERGED = ("csf", "grey", "grey", "white")
RECIPES: dict[str, Any] = {
    "k-means, 3": KMeans(classes=TISSUES),
    "mixture, 3": MixtureOfGaussians(classes=TISSUES),
    "mixture, 3, smooth": MixtureOfGaussians(classes=TISSUES, smoothness=1),
    "mixture, 3, tied": MixtureOfGaussians(classes=TISSUES, covariance="tied"),
    "mixture, 3, tied, smooth": MixtureOfGaussians(
        classes=TISSUES, covariance="tied", smoothness=1
    ),
    "mixture, grey twice": MixtureOfGaussians(classes=MERGED),
    "mixture, grey twice, smooth": MixtureOfGaussians(classes=MERGED, smoothness=1),
    "k-means, grey twice": KMeans(classes=MERGED),
}


def volume(pattern: str) -> np.ndarray:
    """The voxels of the one file that matches, (z, y, x)."""
    folder = Path(os.environ["MASKLOOM_TEST_DATA"]) / "mri_mni152"
    (file,) = folder.glob(pattern)
    return np.ascontiguousarray(np.asarray(nibabel.load(file).dataobj).T)  # type: ignore[attr-defined]


def main() -> None:
    """Print the Dice of each tissue and its volume in ml."""
    brain, truth = volume("images/*.nii.gz"), volume("labels/*.nii.gz")
    inside = brain > 0
    generator = np.random.default_rng(0)
    print("labels:", *(f"{np.count_nonzero(truth == k) / 1000:.0f} ml" for k in (1, 2, 3)))
    for sigma in SIGMAS:
        noisy = np.rint(brain + generator.normal(0, sigma, brain.shape)).clip(0, 255)
        picture = Picture(noisy.astype(np.uint8)[..., None], inside)
        for name, recipe in RECIPES.items():
            found = labelled(fitted(recipe, [picture]), picture)
            figures = []
            for tissue in range(len(TISSUES)):
                ours, theirs = (found == tissue) & inside, (truth == tissue + 1) & inside
                both = np.count_nonzero(ours & theirs)
                sizes = np.count_nonzero(ours), np.count_nonzero(theirs)
                figures.append(f"{2 * both / sum(sizes):.3f} ({sizes[0] / 1000:.0f} ml)")
            print(f"noise {sigma}, {name}: {', '.join(figures)}", flush=True)


if __name__ == "__main__":
    main()
