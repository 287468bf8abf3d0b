"""How byte-level BPE splits a text into words, and what GGUF files call it (`tokenizer.ggml.pre`).

A way to split is regular expressions, one after the other: each splits what the ones before it left, into what it finds
and what lies between. llama.cpp knows ways by label, Hugging Face's files spell them as steps of a pre-tokenizer. The
expressions here are the only ones that are run: the engine backtracks, so of an unknown one nobody knows how long it
takes. Used by `pipeline`, `vocabularies` and `togguf`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


def _characters(ranges: str) -> str:
    """Ranges of code points ("41-5a b5") as inside the brackets of an expression."""
    return "".join("-".join(chr(int(end, 16)) for end in part.split("-")) for part in ranges.split())


CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s+(?!\S)|\s+"
_END = rf"\s*[\r\n]+|{_SPACES}"
_CASED = (
    r"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+{0}|"
    r"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*{0}|"
    r"\p{{N}}{1}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|"
)
_ASCII_MARK = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
LLAMA3 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_END}"
QWEN2 = LLAMA3.replace("{1,3}", "")
QWEN35 = QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
GPT4O = _CASED.format(CONTRACTIONS + "?", "{1,3}") + _END
TEKKEN = _CASED.format("", "") + _END
GPT2 = rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_SPACES}"
SEED_CODER = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_END}"
BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|" + _SPACES
JAIS2 = LLAMA3.removesuffix(_SPACES) + (
    "".join(rf"\s{{{n}}}(?!\S)|" for n in (512, 256, 128, 64, 32, 16, 8, 4)) + r"\s{1,2}(?!\S)|\s{1}"
)
WORD_OR_MARKS = (
    rf"{_ASCII_MARK}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_END}"
)
DIGIT, DIGITS, UP_TO_3_DIGITS, THREE_DIGITS = r"\p{N}", r"\p{N}+", r"\p{N}{1,3}", "[0-9][0-9][0-9]"
MARKS = r"[\p{P}\$\+<=>\^~\|`]+"
BLOOM = " ?[^(\\s|.,!?…。，、।۔،)]+"
CHINESE, CHINESE_AND_KANA, LINE_FEED = "[一-龥ࠀ-一가-퟿]+", "[一-龥぀-ゟ゠-ヿ]+", r"[\r\n]"
_CASED_LETTERS = (  # those of DeepSeek's files
    "41-5a 61-7a b5 c0-d6 d8-f6 f8-1ba 1bc-1bf 1c4-293 295-2af 370-373 376 377 37b-37d 37f 386 388-38a 38c "
    "38e-3a1 3a3-3f5 3f7-481 48a-52f 531-556 10a0-10c5 13a0-13f5 13f8-13fd 1c90-1cba 1cbd-1cbf 1d00-1d2b "
    "1d6b-1d77 1d79-1d9a 1e00-1f15 1f18-1f1d 1f20-1f45 1f48-1f4d 1f50-1f57 1f59 1f5b 1f5d 1f5f-1f7d 1f80-1fb4 "
    "1fb6-1fbc 1fbe 1fc2-1fc4 1fc6-1fcc 1fd0-1fd3 1fd6-1fdb 1fe0-1fec 1ff2-1ff4 1ff6-1ffc 2102 2107 210a-2113 "
    "2115 2119-211d 2124 2126 2128 212a-212d 212f-2134 2139 213c-213f 2145-2149 214e 2183 2184 2c00-2c7b "
    "2c7e-2ce4 2ceb-2cee 2cf2 2cf3 a640-a66d a680-a69b a722-a76f a771-a787 a78b-a78e ab70-abbf fb00-fb06 "
    "fb13-fb17 ff21-ff3a ff41-ff5a 10400-1044f 104b0-104d3 104d8-104fb 10c80-10cb2 10cc0-10cf2 118a0-118df "
    "1e900-1e943"
)
CASED_WORD = rf"\s?[{_characters(_CASED_LETTERS)}]+"
WIDE_MARKS = "\\s?[!-/:-~！-／：-～‘-‟　-。]+"


@dataclass(frozen=True)
class Splitting:
    """A way to split. keeps_tokens: a word that is a token stays whole whatever the merges."""

    patterns: tuple[str, ...] = (GPT2,)
    keeps_tokens: bool = False

    def steps(self) -> dict[str, Any]:
        """The pre_tokenizer of a tokenizer.json."""
        uses_own = self.patterns[-1] == GPT2
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": uses_own}
        splits = [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
            for pattern in (self.patterns[:-1] if uses_own else self.patterns)
        ]
        return {"type": "Sequence", "pretokenizers": [*splits, byte_level]} if splits else byte_level


LABELS = {  # the first that fits is what a file of ours says
    "gpt-2": Splitting(),
    "llama-bpe": Splitting((LLAMA3,), keeps_tokens=True),
    "dbrx": Splitting((LLAMA3,)),
    "qwen2": Splitting((QWEN2,)),
    "gpt-4o": Splitting((GPT4O,)),
    "tekken": Splitting((TEKKEN,), keeps_tokens=True),
    "smollm": Splitting((DIGIT, GPT2)),
    "deepseek-llm": Splitting((LINE_FEED, CASED_WORD, WIDE_MARKS, r"\s+$", CHINESE, DIGITS)),
    "deepseek-coder": Splitting((LINE_FEED, r"\s?\p{L}+", r"\s?\p{P}+", CHINESE, DIGIT)),
    "deepseek-v3": Splitting((UP_TO_3_DIGITS, CHINESE_AND_KANA, WORD_OR_MARKS)),
    "falcon": Splitting((MARKS, GPT2, THREE_DIGITS)),
    "qwen35": Splitting((QWEN35,)),
    "seed-coder": Splitting((SEED_CODER,)),
    "bailingmoe": Splitting((BAILING,)),
    "jais-2": Splitting((JAIS2,)),
    "bloom": Splitting((BLOOM,)),
    "viking": Splitting((BLOOM, DIGIT)),
    "minicpm5": Splitting((UP_TO_3_DIGITS, LLAMA3.replace("{1,3}", "+")), keeps_tokens=True),
    "ufakzeka": Splitting((QWEN2.removeprefix(f"{CONTRACTIONS}|"),)),
    "laguna": Splitting((r"[^\n]+|[\n]+", QWEN2)),
    "default": Splitting((MARKS.replace("`", ""), GPT2, DIGITS, THREE_DIGITS)),
}
SAME = {  # other labels of theirs for the same
    "gpt-2": ("phi-2", "jina-es", "jina-de", "jina-v1-en", "jina-v2-es", "jina-v2-de", "jina-v2-code", "roberta-bpe",
              "gigachat", "a.x-4.0", "mellum", "modern-bert", "exaone4", "olmo", "mpt", "jais", "trillion",
              "granite-docling"),
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
    "dbrx": ("smaug-bpe", "chatglm-bpe", "glm4"),
    "qwen2": ("deepseek-r1-qwen", "kormo", "f2llmv2", "stablelm2", "hunyuan", "solar-open", "megrez", "grok-2"),
    "gpt-4o": ("llama4", "kanana2", "talkie", "minimax-m2"),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
    "deepseek-v3": ("hunyuan-dense", "joyai-llm", "hy_v4"),
    "bailingmoe": ("bailingmoe2", "llada-moe"),
    "bloom": ("poro-chat", "gpt3-finnish"),
}  # fmt: skip
DIFFERS = {  # by label: where llama.cpp splits otherwise than the expression, with which models were trained
    "gpt-4o": "llama.cpp takes combining marks for no part of a word: decomposed text and Indic scripts differ",
    "tekken": "llama.cpp takes combining marks for no part of a word: decomposed text and Indic scripts differ",
    "deepseek-llm": "llama.cpp leaves wide spaces with the word after them: texts that have such differ",
    "deepseek-coder": "llama.cpp leaves wide spaces with the word after them: texts that have such differ",
}
OF_ARCHITECTURE = dict.fromkeys(("gptneox", "gpt2", "phi2"), "gpt-2")  # of files from before there were labels
SPACE_RUNS = " {2,}"  # how unigram models join spaces
PATTERNS = {SPACE_RUNS, *(pattern for known in LABELS.values() for pattern in known.patterns)}


def canonical(label: str) -> str:
    """The first of the labels that stand for the same."""
    return next((first for first, others in SAME.items() if label in others), label)


def labelled(label: str) -> Splitting | None:
    """The way that a label stands for; None if it is not known here."""
    return LABELS.get(canonical(label))


def label_of(splitting: Splitting) -> str | None:
    """The label of a way; None if llama.cpp has none."""
    return next((label for label, known in LABELS.items() if known == splitting), None)


def patterns_of(steps: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    """The expressions that the steps of a byte-level pre-tokenizer come to; none if they are of another form."""
    patterns: list[str] = []
    flat = [step for step in steps if step["type"] != "Sequence"]
    for step in flat[:-1]:
        pattern = _pattern(step)
        if pattern is None:
            return ()
        patterns.append(pattern)
    last = flat[-1] if flat else {}
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space", True):
        return ()
    return (*patterns, GPT2) if last.get("use_regex", True) else tuple(patterns)


def _pattern(step: dict[str, Any]) -> str | None:
    """The expression of a step that splits and keeps all."""
    if step["type"] == "Digits":
        return DIGIT if step.get("individual_digits") else DIGITS
    if step["type"] == "Punctuation" and step.get("behavior") == "Contiguous":
        return MARKS
    pattern = step.get("pattern")
    isolates = step["type"] == "Split" and step.get("behavior") == "Isolated" and not step.get("invert")
    found = pattern.get("Regex") if isolates and isinstance(pattern, dict) else None
    return found if isinstance(found, str) else None
