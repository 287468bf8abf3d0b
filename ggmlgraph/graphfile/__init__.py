"""The bytes of a graph file: its records, the reader and the writer in Python, the metadata leaf, named sizes.

Used by `tracing`, to write what was traced, by `core`, for what the importer in C leaves to Python, and by
`interchange`. Knows no graph that runs and no op's meaning: it does without the extension module.
"""
