"""AFA: end-to-end weakly-supervised semantic segmentation (Learning Affinity from Attention, CVPR 2022)."""

__version__ = "0.1.0"
