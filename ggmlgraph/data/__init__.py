"""Text and arrays in: where they come from, their token stores, and which of them a step of training sees.

`sources.py` finds what texts are read from, `documents.py` reads them, `prepare.py` makes them a store (`store.py`),
which `text.py` cuts into windows and `mixture.py` mixes with others; `arrays.py` is the same for numpy files,
`batches.py` for programs. `corpus.py` is one text. Used by `training` and by the commands that read text. Must not know
how a run is written down.
"""
