"""`maskloom evaluate`: the masks of a run compared with truth masks, in tables and a picture."""
