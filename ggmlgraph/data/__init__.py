"""Text and arrays in: where they come from, their token files, and which of them a step of training sees.

`corpus.py` reads texts, `tokens.py` makes them token files, `text.py` cuts these into windows; `arrays.py` is the same
for numpy files. Used by `training` and by the commands that read text. Must not know how a run is written down.
"""
