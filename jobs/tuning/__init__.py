"""How the trials of a sweep are run (with Ray Tune, packed, by processes that join), and what of it outlives them."""
