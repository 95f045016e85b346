"""EDAM: a network that learns from pairs of images of one class, and labels with saliency (Wu et al., CVPR 2021)."""
