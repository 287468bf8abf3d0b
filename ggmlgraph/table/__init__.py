"""Facts: the ops, one stanza each, and the dialects of ggml's file with their numbers of ops and types.

`op.py` is what a stanza says, `ops.py` the stanzas, `dialect.py` the versions of the format. Read by every other folder
and by the build (`runtime/gen.py`), so nothing here may import anything but the standard library: the table exists
before the extension module does.
"""
