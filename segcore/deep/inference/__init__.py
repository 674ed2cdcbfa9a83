"""Running networks on tiles: cards, patches, blended windows."""
