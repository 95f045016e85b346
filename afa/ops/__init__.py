"""Functions on tensors: CAM, PAR, random walk, lattice filter, CRF. They know no model and no file."""
