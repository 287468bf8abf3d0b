"""llama.cpp through llama-cpp-python, in a process of its own: what it does not like, it aborts on.

    python llamacpp.py MODEL.gguf < request.json > answer.json
    request: {"ids": [...], "logits": FILE.npy, "lines": [...], "prompt": [...], "n": N}

Answers with the file of the logits of `ids`, the ids of each of `lines`, n tokens that follow `prompt` greedily,
and the perplexity of `ids`. Keys and values are cached as F32: as F16, logits would differ by 2e-2.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np


def main(path: str) -> dict[str, Any]:
    from llama_cpp import Llama

    request = json.load(sys.stdin)
    llama = Llama(path, n_ctx=256, logits_all=True, type_k=0, type_v=0, n_threads=1, verbose=False)
    answer: dict[str, Any] = {"n_vocab": llama.n_vocab()}
    if ids := request.get("ids"):
        llama.eval(ids)
        logits = llama.scores[: len(ids)].astype(np.float64)
        np.save(request["logits"], llama.scores[: len(ids)])
        shifted = logits - logits.max(1, keepdims=True)
        log_probability = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        answer["perplexity"] = float(np.exp(-log_probability[np.arange(len(ids) - 1), ids[1:]].mean()))
    lines = request.get("lines", [])
    answer["lines"] = [llama.tokenize(line.encode(), add_bos=False, special=False) for line in lines]
    if prompt := request.get("prompt"):
        llama.reset()
        tokens = list(prompt)
        llama.eval(tokens)
        for _ in range(request["n"]):
            tokens.append(int(np.argmax(llama.scores[len(tokens) - 1])))
            llama.eval(tokens[-1:])
        answer["tokens"] = tokens
        answer["text"] = llama.detokenize(tokens).decode(errors="replace")
    return answer


if __name__ == "__main__":
    json.dump(main(sys.argv[1]), sys.stdout)
