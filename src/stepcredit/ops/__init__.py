"""Pure functions on packed values: segments, pools and their scalings, sums along time, log-probabilities."""
