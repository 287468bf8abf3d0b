"""Tokens per second while a text is generated, ours beside llama.cpp's on the same F32 file: a process each, in turns.

Both decode greedily, one token a call, with as many threads; llama.cpp keeps keys and values in F32 too. Measured
behind 10 and behind 400 tokens. llama.cpp comes as llama-cpp-python, built for AVX2 (tests/peers/llamacpp.cmake);
without it ours is measured alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from report import ggmlgraph, paired_ratio, save, show

DEPTHS = (10, 400)
CTX = 512
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
Step = Callable[[int], int]  # reads a token, gives the likeliest next


def write_llama_110m(path: Path) -> None:
    """A LLaMA of 110M parameters (768 wide, 12 layers, 32000 pieces) with random weights, as GGUF in F32."""
    import gguf

    n_embd, n_layer, n_head, n_ff, n_vocab = 768, 12, 12, 2048, 32000
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CTX)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(n_head)
    writer.add_rope_dimension_count(n_embd // n_head)
    writer.add_layer_norm_rms_eps(1e-5)
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces + [f"p{i}" for i in range(n_vocab - len(pieces))])
    writer.add_token_scores([0.0] * len(pieces) + [-float(i) for i in range(n_vocab - len(pieces))])
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (n_vocab - len(pieces))])
    rng = np.random.default_rng(1)
    attention, wide = [(name, n_embd, n_embd) for name in ("attn_q", "attn_k", "attn_v", "attn_output")], n_ff
    for name in ("token_embd", "output"):
        writer.add_tensor(f"{name}.weight", rng.standard_normal((n_vocab, n_embd), np.float32) * 0.02)
    for i in range(n_layer):
        for name, n, k in (
            *attention,
            ("ffn_gate", wide, n_embd),
            ("ffn_up", wide, n_embd),
            ("ffn_down", n_embd, wide),
        ):
            writer.add_tensor(f"blk.{i}.{name}.weight", rng.standard_normal((n, k), np.float32) * 0.02)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{name}.weight", np.ones(n_embd, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(n_embd, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# ---------------------------------------------------------------- the contenders, each a process of its own


def ours(path: Path, threads: int) -> Callable[[int], Step]:
    """What reads `depth` tokens and then gives the step."""
    from ggmlgraph.execution.runtime import Runtime
    from ggmlgraph.generation.decoding import CachedReader

    reader = CachedReader(Runtime(path, threads=threads, ctx=CTX))

    def begin(depth: int) -> Step:
        reader.rewind(0)
        reader.advance(np.ones((1, depth), np.int32))
        return lambda token: int(reader.advance(np.array([[token]], np.int32))[0].argmax())

    return begin


def llama_cpp(path: Path, threads: int) -> Callable[[int], Step]:
    """The same through llama.cpp's C API, without the sampling of its Python class."""
    import llama_cpp as api

    model = api.Llama(
        str(path), n_ctx=CTX, n_threads=threads, n_threads_batch=threads, type_k=0, type_v=0, verbose=False
    )
    context, n_vocab, batch = model._ctx.ctx, model.n_vocab(), api.llama_batch_init(1, 0, 1)
    batch.n_tokens, batch.n_seq_id[0], batch.seq_id[0][0], batch.logits[0] = 1, 1, 0, 1

    def begin(depth: int) -> Step:
        model.reset()
        model._ctx.kv_cache_clear()
        model.eval([1] * depth)
        batch.pos[0] = depth - 1

        def step(token: int) -> int:
            batch.token[0] = token
            batch.pos[0] += 1
            if api.llama_decode(context, batch) != 0:
                sys.exit("llama_decode failed")
            return int(np.ctypeslib.as_array(api.llama_get_logits_ith(context, -1), shape=(n_vocab,)).argmax())

        return step

    return begin


CONTENDERS = {"ours": ours, "llama.cpp": llama_cpp}


def work(kind: str, path: Path, threads: int) -> None:
    """Answer each "depth n" with tokens per second over n tokens behind `depth`, and the tokens."""
    begin = CONTENDERS[kind](path, threads)
    for line in sys.stdin:
        depth, n = map(int, line.split())
        step, token, tokens = begin(depth), 5, []
        start = perf_counter()
        for _ in range(n):
            token = step(token)
            tokens.append(token)
        print(json.dumps({"rate": n / (perf_counter() - start), "tokens": tokens}), flush=True)


# ---------------------------------------------------------------- the measurement


def measure(files: dict[str, Path], threads: int, rounds: int, n: int) -> dict[str, dict[int, list[Any]]]:
    """For each contender and depth its answers, taken in turns; the first round is not counted."""
    processes = {
        kind: subprocess.Popen([sys.executable, __file__, kind, str(path), str(threads)],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for kind, path in files.items()
    }  # fmt: skip
    answers: dict[str, dict[int, list[Any]]] = {kind: {depth: [] for depth in DEPTHS} for kind in files}
    for i in range(rounds + 1):
        for depth in DEPTHS:
            for kind, process in processes.items():
                assert process.stdin and process.stdout
                print(depth, n, file=process.stdin, flush=True)
                answer = json.loads(process.stdout.readline() or sys.exit(f"{kind} ended"))
                if i > 0:
                    answers[kind][depth].append(answer)
    for process in processes.values():
        assert process.stdin
        process.stdin.close()
        process.wait()
    return answers


def models(out: Path) -> dict[str, tuple[Path, int]]:
    """GGUF files by name, and how many tokens to measure over."""
    out.mkdir(parents=True, exist_ok=True)
    found = {}
    if (small := SHARED / "stories260K" / "stories260K-f32.gguf").exists():
        found["stories260K"] = small, 64
    if find_spec("gguf"):
        if not (large := out / "llama-110m.gguf").exists():
            write_llama_110m(large)
        found["LLaMA 110M"] = large, 24
    return found


def main(out: Path, threads: int, rounds: int) -> None:
    """Measure, print, save."""
    rows, result = [], []
    for name, (path, n) in models(out).items():
        graph = out / f"{path.stem}.bin"
        ggmlgraph("convert", path, "-o", graph)
        files = {"ours": graph} | ({"llama.cpp": path} if find_spec("llama_cpp") else {})
        answers = measure(files, threads, rounds, n)
        for depth in DEPTHS:
            rates = {kind: [a["rate"] for a in answers[kind][depth]] for kind in files}
            peer = rates.get("llama.cpp")
            rows.append((f"{name} at {depth}", median(rates["ours"]), median(peer) if peer else "",
                         paired_ratio(rates["ours"], peer) if peer else ""))  # fmt: skip
        result.append({"model": name, "tokens": n, "answers": answers})
    show(f"greedy decoding, {threads} threads, {rounds} rounds", ["model", "tokens/s", "llama.cpp", "ratio"], rows)
    save(out, "decode", threads, result)


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
