"""A training run: its options, its directory, its metrics, its loop, and what the terminal shows of it.

Used by `ggmlgraph train`, and by `generation` and `interchange` to find what a run has left. Must not know how text is
generated or other programs' files.
"""
