"""Kinds of checkpoints, one module each: which files belong together, what they say of the model.

Each opens its kind as a `ModelSource` (`base.py`). Used by `interchange.checkpoints`, which tells the kinds apart.
"""
