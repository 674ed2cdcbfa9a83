"""The local page of `maskloom view`: a server of tiles and planes, and its page in `static`."""
