"""`maskloom demo`: what it shows, and the images that it makes."""
