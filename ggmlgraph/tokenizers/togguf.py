"""The tokenizer section of a GGUF file. Used by `exportgguf`.

llama.cpp runs three kinds: `llama`, sentencepiece's BPE, which falls back to byte pieces; `t5`, sentencepiece's
unigram; `gpt2`, byte-level BPE, with a label `pre` for the way it splits words. Files with a wrong label or
without scores or types load and give other ids, so what has no exact form is refused here, and what differs in
rare texts is told.
"""

from __future__ import annotations

from typing import Any

from ggmlgraph.errors import UnsupportedError
from ggmlgraph.tokenizers import pipeline, splitting, spm, spmfromjson
from ggmlgraph.tokenizers.base import Tokenizer
from ggmlgraph.tokenizers.huggingface import HuggingFaceTokenizer
from ggmlgraph.tokenizers.plain import BytesTokenizer
from ggmlgraph.tokenizers.sentencepiece import SentencePieceTokenizer
from ggmlgraph.tokenizers.settings import GGUF_ENDS
from ggmlgraph.tokenizers.splitting import Splitting
from ggmlgraph.tokenizers.spm import SpmModel

Section = tuple[dict[str, Any], list[str]]  # keys and values; what the user should know

PADDING_SCORE = -1000.0
NEVER = 0xFF  # a byte that no UTF-8 text has, in place of the special tokens that bytes have not
NO_MERGE = "\u0100\u0100 \u0100\u0100"  # of two pieces that no merge makes: llama.cpp wants at least one merge


def section(tokenizer: Tokenizer | None, n_vocab: int) -> Section:
    """The keys tokenizer.* for a model whose embedding has n_vocab rows. Raises UnsupportedError, saying why."""
    if tokenizer is None:
        return {"tokenizer.ggml.model": "none"}, ["no tokenizer: llama.cpp will take ids, not text"]
    keys, notes = _kind(tokenizer)
    n_missing = n_vocab - len(keys["tokens"])
    if n_missing:
        keys["tokens"] += [f"[PAD{i}]" for i in range(len(keys["tokens"]), n_vocab)]
        keys["token_type"] += [spm.UNUSED] * n_missing
        if "scores" in keys:
            keys["scores"] += [PADDING_SCORE] * n_missing
        notes.append(f"the model has {n_missing} ids more than the tokenizer: [PAD...] in the file, never used")
    keys |= {"add_bos_token": tokenizer.adds_bos, "add_eos_token": False}
    ends = [token for token in tokenizer.settings.ends if token != tokenizer.eos_id]
    keys |= {f"{name}_token_id": token for name, token in zip(GGUF_ENDS, ends, strict=False)}
    if rest := ends[len(GGUF_ENDS) :]:
        notes.append(f"GGUF has no place for {len(rest)} more tokens that end a text: {rest[0]}")
    pairs = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    if tokenizer.chat_template is not None:
        pairs["tokenizer.chat_template"] = tokenizer.chat_template
    return pairs, notes


def _kind(tokenizer: Tokenizer) -> Section:
    if isinstance(tokenizer, BytesTokenizer):
        return _bytes()
    if isinstance(tokenizer, SentencePieceTokenizer):
        return _sentencepiece(tokenizer.model, tokenizer)
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return _hugging_face(tokenizer)
    raise UnsupportedError(f"llama.cpp has no tokenizer like {tokenizer.kind}: it would not encode as training did")


def _sentencepiece(model: SpmModel, tokenizer: Tokenizer) -> Section:
    notes = []
    if model.model_type == spm.UNIGRAM:
        label = "t5"
        if model.byte_fallback:
            notes.append("llama.cpp's unigram has no byte fallback: characters outside the vocabulary become <unk>")
    elif model.model_type != spm.BPE:
        raise UnsupportedError("a sentencepiece model of words or characters has no form in GGUF")
    elif not model.byte_fallback:
        raise UnsupportedError("llama.cpp's sentencepiece BPE needs the 256 byte pieces, which this tokenizer has not")
    elif model.charsmap or model.remove_extra_whitespaces:
        raise UnsupportedError("this sentencepiece BPE normalises text, which llama.cpp's does not: ids would differ")
    else:
        label = "llama"
    if not model.escape_whitespaces:
        raise UnsupportedError("a sentencepiece model that does not escape spaces has no form in GGUF")
    unknown = model.types.index(spm.UNKNOWN)
    keys: dict[str, Any] = {
        "model": label,
        "pre": "default",
        "tokens": list(model.pieces),
        "scores": list(model.scores),
        "token_type": list(model.types),
        "unknown_token_id": unknown,
        "bos_token_id": unknown if tokenizer.bos_id is None else tokenizer.bos_id,
        "eos_token_id": unknown if tokenizer.eos_id is None else tokenizer.eos_id,
        "add_space_prefix": model.add_dummy_prefix,
        "remove_extra_whitespaces": model.remove_extra_whitespaces,
    }
    if model.charsmap:
        keys["precompiled_charsmap"] = model.charsmap
    return keys, notes


def _bytes() -> Section:
    """As byte-level BPE that merges nothing."""
    alphabet = [pipeline.spelt(bytes([byte])) for byte in range(256)]
    special = {f"{name}_token_id": NEVER for name in ("bos", "eos")}
    return {
        "model": "gpt2", "pre": "gpt-2", "tokens": alphabet, "token_type": [spm.NORMAL] * 256, "merges": [NO_MERGE],
        **special,
    }, []  # fmt: skip


def _hugging_face(tokenizer: HuggingFaceTokenizer) -> Section:
    file = tokenizer.json.file
    if file.kind == "BPE" and file.is_byte_level:
        return _byte_level(tokenizer)
    return _sentencepiece(spmfromjson.model(file), tokenizer)


def _byte_level(tokenizer: HuggingFaceTokenizer) -> Section:
    file, names, notes = tokenizer.json.file, tokenizer.json.names, []
    normalizers = {step["type"] for step in pipeline.steps(file.normalizer)} - {"Sequence"}
    if normalizers - {"NFC"}:
        raise UnsupportedError(
            f"llama.cpp does not do the normalization {min(normalizers - {'NFC'})}: ids would differ"
        )
    if normalizers:
        notes.append("the tokenizer composes characters (NFC), llama.cpp does not: decomposed text differs")
    patterns = splitting.patterns_of(pipeline.steps(file.pre_tokenizer))
    pre = splitting.label_of(Splitting(patterns, bool(file.model.ignore_merges)))
    if pre is None:
        raise UnsupportedError("llama.cpp has no name for the way this tokenizer splits text: ids would differ")
    if pre in splitting.DIFFERS:
        notes.append(splitting.DIFFERS[pre])
    if loose := [token.content for token in file.added_tokens if token.lstrip or token.rstrip or token.single_word]:
        notes.append(f"llama.cpp takes no spaces off beside {', '.join(loose[:4])}: texts with these differ")
    added = {token.id: spm.CONTROL if token.special else spm.USER_DEFINED for token in file.added_tokens}
    special = [(name, i) for name, i in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id)) if i is not None]
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": [name or f"[PAD{i}]" for i, name in enumerate(names)],
        "token_type": [added.get(i, spm.NORMAL if name else spm.UNUSED) for i, name in enumerate(names)],
        "merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in file.model.merges] or [NO_MERGE],
        **{f"{name}_token_id": i for name, i in special},
    }, notes
