"""Text and arrays in: where they come from, their token files, and which of them a step of training sees.

`corpus.py` reads texts, `tokens.py` makes windows of token ids, `arrays.py` does the same for numpy files. Used by
`training` and by the commands that read text. Must not know how a run is written down.
"""
