"""A graph file that runs: roles of its tensors, programs, gradients and steps, checkpoints of their state.

Used by `training`, `generation` and everything else that needs numbers. Must not know what the numbers are about: text,
tokenizers and run directories are above.
"""
