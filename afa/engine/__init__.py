"""How any method is run: loop, optimiser, checkpoints, processes, records. It knows no method by name."""
