"""What a model is written with: tensors, parameters, initialisers, named models; a function becomes a graph file.

`architectures.py` finds a model by name or file, `tracer.py` runs its function once and records it, `export.py`
writes what was recorded. Used by models, through `ggmlgraph`'s public names, and by the commands that make graph files.
Must not know how a graph is run.
"""
