"""Bytes of a format become tensors that are found and checked, but not read: `Stored`.

One module a format: its header, nothing of what a model is. Used by `interchange.sources`. No file is trusted: no
pickle is executed, and sizes are checked before anything is allocated.
"""
