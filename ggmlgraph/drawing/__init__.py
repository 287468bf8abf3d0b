"""Pictures: a graph as boxes, its repeated blocks folded into one; a program's memory over time.

Used by `ggmlgraph draw`. It looks at graphs and programs of `core` by id, whoever made them, and knows nothing of
models, names or files.
"""
