"""A run, or a folder of labels or masks, as one HTML page: what it is, how good it is, what it says about images."""
