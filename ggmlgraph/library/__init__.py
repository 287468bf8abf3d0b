"""Whole jobs for Python programs, as the commands do them: a model loaded, a text continued, a tokenizer read.

Public as `ggmlgraph.load`, `generate` and `tokenizer`; the commands call the same. It knows every folder below the
command line, and nothing of options, terminals or exit statuses.
"""
