"""`maskloom init` and `maskloom try`: a recipe for given images, and its preview."""
