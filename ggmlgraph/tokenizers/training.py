"""Making a tokenizer: a sentencepiece model trained on texts. Used by the command `tokenizer train`."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from ggmlgraph.durable import replacing
from ggmlgraph.errors import DataError, UsageError
from ggmlgraph.tokenizers import spm
from ggmlgraph.tokenizers.sentencepiece import SILENT, SentencePieceTokenizer, import_sentencepiece

_MAX_SENTENCES = 2_000_000
_MAX_SENTENCE_NBYTES = 1 << 18  # sentencepiece drops longer lines, so they are cut
_HIGHEST = re.compile(r"too high .* value <= (\d+)")
_LOWEST = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")


def train_tokenizer(
    lines: Iterable[str],
    out: str | Path,
    model: Literal["bpe", "unigram"] = "bpe",
    n_vocab: int = 4096,
    *,
    special: Sequence[str] = (),
    character_coverage: float = 0.9995,
) -> SentencePieceTokenizer:
    """Train a sentencepiece model on lines of text, write it to `out` (complete or not at all) and return it.

    Every text round-trips through the result:
    - byte_fallback: characters outside the vocabulary become bytes, never <unk>; with a character_coverage of 1 there
      are no bytes, and what the text does not have is <unk>;
    - identity normalisation and remove_extra_whitespaces=False: NFKC and the merging of spaces lose text;
    - add_dummy_prefix=False: encode(a) and encode(b) joined decode to a + b, so a prompt can be continued and a corpus
      cut anywhere, and a word after a line feed is spelt like one at the start of a text. llama.cpp's SPM
      follows it through `tokenizer.ggml.add_space_prefix`;
    - the space is required in the vocabulary, which a text without spaces (Japanese) would leave out.
    `special` names control tokens, which no text is encoded as. Beyond 2 million lines an even, repeatable sample is
    used. The same text gives the same file.

    Raises UsageError if n_vocab does not fit the text, saying what would; DataError for text without anything to learn.
    """
    sentencepiece = import_sentencepiece()
    if model not in ("bpe", "unigram"):
        raise UsageError(f"tokenizer model {model!r}: choose bpe or unigram")
    if not 1 <= n_vocab <= spm.MAX_PIECES:
        raise UsageError(f"vocabulary size {n_vocab} is not in 1 .. {spm.MAX_PIECES}")
    serialized = io.BytesIO()
    sentencepiece.set_random_generator_seed(0)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(part for line in lines for part in _sentences(line)),
            model_writer=serialized,
            model_type=model,
            vocab_size=n_vocab,
            byte_fallback=character_coverage < 1,
            character_coverage=character_coverage,
            control_symbols=list(special),
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            required_chars=spm.SPACE,
            split_digits=True,
            max_sentence_length=_MAX_SENTENCE_NBYTES,
            input_sentence_size=_MAX_SENTENCES,
            num_threads=16,  # part of the result: unigram sums per thread
            minloglevel=SILENT,
        )
    except RuntimeError as error:
        raise _training_error(str(error), n_vocab) from None
    tokenizer = SentencePieceTokenizer(serialized.getvalue())
    _write(Path(out), serialized.getvalue())
    return tokenizer


def _sentences(line: str) -> Iterator[str]:
    """Parts of a line short enough for the trainer; U+2585 and NUL, which it reserves, are left out."""
    line = line.replace("\u2585", "").replace("\0", "")
    n = _MAX_SENTENCE_NBYTES // 4
    return (line[i : i + n] for i in range(0, len(line), n))


def _training_error(message: str, n_vocab: int) -> UsageError | DataError:
    if found := _HIGHEST.search(message):
        return UsageError(f"vocabulary size {n_vocab} is too high for this text; the highest possible is {found[1]}")
    if found := _LOWEST.search(message):
        return UsageError(f"vocabulary size {n_vocab} is too low for this text's characters; it needs {found[1]}")
    if "sentences_.empty()" in message:
        return DataError("the text has nothing to train a tokenizer on")
    return DataError(f"sentencepiece cannot train on this text: {message}")


def _write(path: Path, data: bytes) -> None:
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None
