"""Text out: logits read token by token, the choice of the next, conversations, and how good a model is.

Used by `generate`, `chat`, `eval` and, for samples, by `train`. Must not know other programs' files.
"""
