"""Files that a command was given, before anybody knows what they are: opened if regular, named if they are strangers.

Used by everything that reads graphs, checkpoints, tokenizers, texts and configurations. Knows no format.
"""
