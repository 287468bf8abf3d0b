"""The C boundary: the only folder that knows the extension module `_runtime` and ggml's order of axes.

Graphs, programs and errors of the C library as Python objects, in numpy's order of axes and with the lifetimes of their
memory; the importer of graph files; element types. Used by `tracing` and `execution`. Must not know models, names of
parameters, or what a run is.
"""
