"""Adapters in llama.cpp, in a process of its own: what it does not like, it aborts on.

    python llamacpp_adapter.py MODEL.gguf ADAPTER.gguf|- IDS.json LOGITS.npy

Writes the logits of the ids, float32 (n, n_vocab). Keys and values are cached as F32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np


def main(model: str, adapter: str, ids: str, logits: str) -> None:
    from llama_cpp import Llama

    path = None if adapter == "-" else adapter
    llama = Llama(model, lora_path=path, n_ctx=256, logits_all=True, type_k=0, type_v=0, n_threads=1, verbose=False)
    tokens = json.loads(Path(ids).read_text())
    llama.eval(tokens)
    np.save(logits, llama.scores[: len(tokens)])


if __name__ == "__main__":
    main(*sys.argv[1:])
