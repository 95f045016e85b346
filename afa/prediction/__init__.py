"""How any trained method is used: images of any size in, maps and masks of their size out; label folders."""
