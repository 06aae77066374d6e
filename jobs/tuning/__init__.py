"""How the trials of a sweep are run with Ray Tune, and what of it outlives the driver."""
