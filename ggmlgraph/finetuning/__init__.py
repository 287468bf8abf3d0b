"""Fine-tuning: adapters of a graph's weights, what other programs call them, and merging them.

What runs is an ordinary graph file, trained by an ordinary run.
"""
