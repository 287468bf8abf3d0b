"""Architectures, one file each: a frozen dataclass of sizes and a few functions. Installed as `ggmlgraph.models`."""
