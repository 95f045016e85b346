"""AFA: one network, one loop (CVPR 2022)."""
