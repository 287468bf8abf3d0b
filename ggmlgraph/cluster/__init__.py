"""Many processes that train one model: mpi (uniform machines, in step)."""
