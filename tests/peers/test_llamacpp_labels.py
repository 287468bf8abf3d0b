"""Every label of `tokenizer.ggml.pre` that is known here: llama.cpp splits texts as we do, or the label is refused.

The vocabulary's merges were learnt across the borders of words, so that ids tell where a text was split.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from randommodels import graph_of
from test_llamacpp import llamacpp

from ggmlgraph.interchange import checkpoints, exportgguf, trained
from ggmlgraph.tokenizers import splitting
from ggmlgraph.tokenizers.huggingface import HuggingFaceTokenizer
from ggmlgraph.tokenizers.splitting import DIFFERS, LABELS, SAME

package = pytest.importorskip("tokenizers", reason="for want of tokenizers")

LINES = [
    "Hello, world!  It's   1234567 o'clock, and he'd say: \"don't!\"",
    "I'LL we've YOU'RE they'd'nt 'tis ' s 'S",
    "x=1;y=22;zz=333;w=4444;v=55555 3.14159 1,000,000 2nd 0x1F ½ ² ٣٤٥ 一二三",
    "tabs\tand\t\tmore\n\nlines\r\n end \n  ",
    "   leading and trailing   ",
    "    def f(x):\n        return x ** 2  # ok\n\n\n",
    "日本語のテキスト、これはペンです。カタカナ",
    "中文文本，你好！我是机器人。",
    "한국어 텍스트입니다. 안녕하세요?",
    "Привет, мир! Ёлка ǅungla Ωmega éàü naïve",
    "🙂🙃 emoji flags🇩🇪🇯🇵 ✓✗→←",
    "camelCaseWord HTTPServer ABCdef abcDEF iPhone McDonald",
    "path/to/file.txt C:\\dir\\x http://a.b/c?d=e&f=g#h a@b.c",
    "!!??..,,;;::--__==++**//\\\\||<<>>()[]{}~~``^^%%$$##@@&&",
    "a\u00a0nbsp zero\u200bwidth",
    "a.b.c...d…e 'quoted' “curly” ‘single’ «guillemets» — dash – en",
    "100% $5 €6 £7 #8 +9 -10 ×11 ÷12",
    "\n\n\n\t \t\n",
    "  \n \r\n\r\r x",
    "עברית العربية ١٢٣",
    "don’t can’t I’m you’re",
    "word1word2 3words four4 5",
]
MARKS, WIDE_SPACES = "cafe\u0301 Z\u0335\u0301algo हिन्दी पाठ ไทยข้อความ", "\u3000ideographic a\u2003em"


@cache
def vocabulary() -> dict[str, Any]:
    """A byte-level BPE whose merges take no notice of words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, show_progress=False, max_token_length=12)
    pieces = [line[i : i + 9] for line in [*LINES, MARKS, WIDE_SPACES] for i in range(0, len(line), 4)]
    tokenizer.train_from_iterator(pieces * 3, trainer)
    file: dict[str, Any] = json.loads(tokenizer.to_str())
    return file


def ids_of(label: str, lines: list[str], folder: Path) -> tuple[list[list[int]], list[list[int]], list[str]]:
    """Ids here and in llama.cpp, out of one file with the label, and what exporting it told."""
    known = splitting.labelled(label)
    assert known is not None
    file = vocabulary()
    file = file | {"pre_tokenizer": known.steps(), "model": file["model"] | {"ignore_merges": known.keeps_tokens}}
    tokenizer = HuggingFaceTokenizer(json.dumps(file).encode())
    graph = graph_of("llama", folder / "g.bin", tokenizer, n_vocab=tokenizer.n_vocab, n_layer=1)
    with mock.patch.object(splitting, "label_of", lambda _: label):
        notes = exportgguf.export(trained.find(graph), folder / "m.gguf")
    found = checkpoints.find(folder / "m.gguf").find_tokenizer()
    assert found is not None
    ours = [found.tokenizer.encode(line).tolist() for line in lines]
    return ours, llamacpp(folder / "m.gguf", lines=lines)["lines"], notes


@pytest.mark.parametrize("label", [*LABELS, *(label for others in SAME.values() for label in others)])
def test_texts_are_split_as_llamacpp_splits_them(label: str, tmp_path: Path) -> None:
    lines = LINES if splitting.canonical(label) in DIFFERS else [*LINES, MARKS, WIDE_SPACES]
    ours, theirs, _ = ids_of(label, lines, tmp_path)
    assert list(zip(lines, ours, strict=True)) == list(zip(lines, theirs, strict=True))


@pytest.mark.parametrize("label", DIFFERS)
def test_where_llamacpp_splits_otherwise_is_told(label: str, tmp_path: Path) -> None:
    line = MARKS if "combining" in DIFFERS[label] else WIDE_SPACES
    (ours,), (theirs,), notes = ids_of(label, [line], tmp_path)
    assert ours != theirs
    assert DIFFERS[label] in notes
