"""Everything that a GPU should be asked, in one command: speed, memory, where time goes, and whether it computes right.

:mod:`afa.benchmarks.gpu.plan` runs the measurements, each in a process of its own. Nothing here needs a GPU to be
tried: ``--device cpu --small`` goes through the same code.
"""
