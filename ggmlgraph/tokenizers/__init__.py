"""Text to ids and back, one interface (`base.py`) for every kind.

    leaf.py           the leaf `ggmlgraph.tokenizer`, in which one travels inside graph.bin
    plain.py          bytes; the characters of an alphabet
    sentencepiece.py  models of sentencepiece, whose files spm.py reads and writes; training.py trains them
    huggingface.py    tokenizer.json, which pipeline.py reads; splitting.py has the ways to split a text into words
    vocabularies.py   files of llama2.c, GGUF, tiktoken, and vocab.json with merges.txt, as one of the two above
    jsonfromspm.py    a sentencepiece model spelt as a tokenizer.json; spmfromjson.py turns that back
    settings.py       chat template, special and added tokens, as other files say them; added.py adds them
    togguf.py, tohf.py  the way out, for `export-gguf` and `export-hf`

Used by `data`, `generation` and `interchange`, which finds tokenizers in other programs' files. Must not know where
text comes from, nor any model.
"""
