"""Augmentations: random changes of patches that leave their labels true.

There are three kinds. A `Geometry` moves pixels and labels together: all of a patch make one warp,
by which its window is read (`segcore.training.warping`). A `PixelChange` changes pixels only, after
that and in the order of the recipe. A `Mixture` joins the patches of a step at the end. Volumes are
mirrored and turned in their planes, and along z only if asked for: slices often have another
spacing. Pixels are float32 after scaling, so amounts are in the network's units: with values from 0
to 1, a brightness of 0.1 is a tenth of the range. Before a scaling by the image, a gain or an
offset would be undone by it.
"""
