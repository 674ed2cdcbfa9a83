"""Features: numbers computed from the bands of an image, which segmenters see in their place.

`named` says what the words of a recipe mean for an image, `evaluation` computes, and `reader`
delivers the features of any box, so that everything above sees an ordinary image.
"""
