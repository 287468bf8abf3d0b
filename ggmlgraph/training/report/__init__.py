"""A run as one page that needs no network: its curves, events, samples, and what made it.

Used by `ggmlgraph report` and `ggmlgraph dash`. It reads what a run directory holds and nothing else; training knows
nothing of it.
"""
