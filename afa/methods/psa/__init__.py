"""PSA: CAM network, AffinityNet and random walk, one after the other (Ahn and Kwak, CVPR 2018)."""
