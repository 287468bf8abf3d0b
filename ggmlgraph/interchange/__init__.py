"""Other programs' files, in and out.

    formats/    bytes of a format become tensors that are found and checked, but not read
    sources/    a kind of checkpoint, with its configuration and tokenizer; checkpoints.py recognises them
    naming.py   what each format calls the parts of a model; the tables are models/names
    convert.py  a checkpoint becomes a graph file, which weightcheck.py reads a text with
    ondemand.py a checkpoint where a graph is wanted, converted into a cache
    trained.py  a model of ours for exportgguf.py and exporthf.py

Used by `convert`, `export-gguf`, `export-hf` and whoever takes a tokenizer from a file. Nothing that comes from such a
file is believed before it is checked.
"""
