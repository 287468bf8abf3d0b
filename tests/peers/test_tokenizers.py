"""Tokenizer folders of many architectures: ids of texts and of conversations are those of transformers.

The folders are made here, by transformers and tokenizers, in the shapes that published models have. Skipped where
transformers is not installed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from places import REAL

from ggmlgraph.errors import UnsupportedError
from ggmlgraph.generation import chat, templateprocess
from ggmlgraph.interchange.tokenizer import find_tokenizer
from ggmlgraph.tokenizers import spm
from ggmlgraph.tokenizers.base import Tokenizer
from ggmlgraph.tokenizers.splitting import LABELS

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
package = pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")

N_TEXTS, N_TALKS = 200, 20
TEXT = (
    "The quick brown fox jumps over the lazy dog, said Zoë.\n\n  Pack my box with 12 dozen liquor jugs! It's 3.14159, "
    "isn't it? def f(x): return x**2  # 日本語のテキスト、ünïcode — “quotes” …\r\n\tOnce upon a time, she said. "
) * 40
NAMES = ["<|im_start|>", "<|im_end|>", "<tool>", "<mask>"]
WORDS = [
    *TEXT.split(),
    " ", "  ", "\n", "\n\n", "\t", "1234567", "2.5", "x==y", "don't", "DON'T", "𝔘𝔫𝔦", "👍🏽", "e\u0301", "▁", "<", ">",
    "<s>", "</s>", "<unk>",
    "<|endoftext|>", "<bos>", *NAMES,
]  # fmt: skip


@cache
def texts() -> list[str]:
    rng = random.Random(0)
    found = ["", " ", "a", " a", "\n", *WORDS]
    while len(found) < N_TEXTS:
        found.append(
            "".join(rng.choice(WORDS) + rng.choice(["", " ", " ", "  ", "\n"]) for _ in range(rng.randint(1, 14)))
        )
    return [text for text in found if text.isprintable() or text.isascii() or True][:N_TEXTS]


# ---------------------------------------------------------------- vocabularies


def trained(pre_tokenizer: Any, normalizer: Any = None) -> dict[str, Any]:
    """A byte-level BPE that the package trained, as a file."""
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = package.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([TEXT], trainer)
    file: dict[str, Any] = json.loads(tokenizer.to_str())
    return file


def byte_level(*steps: Any, **more: Any) -> dict[str, Any]:
    from tokenizers import pre_tokenizers

    last = pre_tokenizers.ByteLevel(add_prefix_space=False, **more)
    return trained(pre_tokenizers.Sequence([*steps, last]) if steps else last)


@cache
def spm_model(model_type: str = "bpe") -> bytes:
    """A model of sentencepiece in LLaMA's manner."""
    import io

    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()), model_writer=out, vocab_size=400, model_type=model_type,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=3,
        hard_vocab_limit=False,
    )  # fmt: skip
    return out.getvalue()


def spm_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    from transformers.tokenization_utils_base import generate_merges

    vocab = {piece: i for i, piece in enumerate(spm.read(spm_model()).pieces)}
    return vocab, generate_merges(vocab)


def split(*patterns: str) -> list[Any]:
    from tokenizers import Regex, pre_tokenizers

    return [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]


# ---------------------------------------------------------------- folders


def saved(tokenizer: Any, folder: Path, model: str, *, added: bool = True) -> None:
    """A folder as transformers saves it, with some added tokens."""
    if added:
        special = [package.AddedToken(name, special=True, normalized=False) for name in NAMES[:2]]
        tokenizer.add_tokens(special, special_tokens=True)
        tokenizer.add_tokens([package.AddedToken("<tool>", normalized=False)])
        tokenizer.add_tokens([package.AddedToken("<mask>", lstrip=True, special=True, normalized=False)])
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": model}))


def of_file(file: dict[str, Any], folder: Path, model: str, **config: Any) -> None:
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=package.Tokenizer.from_str(json.dumps(file)), **{"eos_token": "<|endoftext|>", **config}
    )
    saved(tokenizer, folder, model)


def of_label(label: str, model: str) -> Callable[[Path], None]:
    """Byte-level BPE that splits as one of llama.cpp's labels says."""

    def make(folder: Path) -> None:
        file = byte_level(*split(*LABELS[label].patterns), use_regex=False)
        of_file(file, folder, model, bos_token="<|endoftext|>")

    return make


def of_class(name: str, model: str, **more: Any) -> Callable[[Path], None]:
    """A class of transformers with a pipeline of its own."""

    def make(folder: Path) -> None:
        if name in ("LlamaTokenizer", "GemmaTokenizer"):
            vocab, merges = spm_vocabulary()
            names = {"bos_token": "<s>", "eos_token": "</s>"}
        else:
            file = byte_level()
            vocab, merges = file["model"]["vocab"], [tuple(merge) for merge in file["model"]["merges"]]
            names = {"unk_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
        saved(getattr(transformers, name)(vocab=vocab, merges=merges, **names, **more), folder, model)

    return make


def smollm(folder: Path) -> None:
    from tokenizers import pre_tokenizers

    of_file(byte_level(pre_tokenizers.Digits(individual_digits=True)), folder, "llama")


def falcon(folder: Path) -> None:
    from tokenizers import pre_tokenizers

    steps = [pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.ByteLevel(add_prefix_space=False),
             pre_tokenizers.Digits(individual_digits=False), *split("[0-9][0-9][0-9]")]  # fmt: skip
    of_file(trained(pre_tokenizers.Sequence(steps)), folder, "llama")


def unigram(folder: Path) -> None:
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = package.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    of_file(json.loads(tokenizer.to_str()), folder, "mistral", eos_token="</s>", unk_token="<unk>")


def word_piece(folder: Path) -> None:
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = package.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=250, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    of_file(json.loads(tokenizer.to_str()), folder, "gpt2", eos_token="[SEP]")


def llama_with_prepend(folder: Path) -> None:
    from tokenizers import decoders, models, normalizers

    vocab, merges = spm_vocabulary()
    tokenizer = package.Tokenizer(models.BPE(vocab, merges, fuse_unk=True, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    of_file(json.loads(tokenizer.to_str()), folder, "mistral", bos_token="<s>", eos_token="</s>")


def without_json(make: Callable[[Path], None], class_name: str) -> Callable[[Path], None]:
    """The same in the files of old: vocab.json, merges.txt, added_tokens.json, special_tokens_map.json."""

    def remade(folder: Path) -> None:
        make(folder)
        file = json.loads((folder / "tokenizer.json").read_text())
        (folder / "tokenizer.json").unlink()
        model = file["model"]
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": class_name}))
        added = {t["content"]: t["id"] for t in file["added_tokens"] if t["content"] not in model["vocab"]}
        (folder / "added_tokens.json").write_text(json.dumps(added))
        special = {"eos_token": "<|endoftext|>", "additional_special_tokens": NAMES[:2]}
        (folder / "special_tokens_map.json").write_text(json.dumps(special))

    return remade


def sentencepiece(added: str, **config: Any) -> Callable[[Path], None]:
    """tokenizer.model of a LLaMA, with tokens that a fine-tune added."""

    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / "tokenizer.model").write_bytes(spm_model())
        n = len(spm.read(spm_model()).pieces)
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer"}
        if added == "added_tokens_decoder":
            listed: dict[str, Any] = {
                str(i): {"content": t, "special": True, "normalized": False}
                for i, t in enumerate(("<unk>", "<s>", "</s>"))
            }
            listed |= {
                str(n + i): {"content": name, "special": i != 2, "normalized": False, "lstrip": i == 3}
                for i, name in enumerate(NAMES)
            }
        elif added:
            (folder / "added_tokens.json").write_text(json.dumps({name: n + i for i, name in enumerate(NAMES)}))
            (folder / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": NAMES[:2]}))
        (folder / "tokenizer_config.json").write_text(json.dumps(names | config))
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))

    return make


FOLDERS: dict[str, Callable[[Path], None]] = {
    "gpt2": of_class("GPT2Tokenizer", "gpt2"),
    "gpt2 with a space before": of_class("GPT2Tokenizer", "gpt2", add_prefix_space=True),
    "gpt2, vocab and merges": without_json(of_class("GPT2Tokenizer", "gpt2"), "GPT2Tokenizer"),
    "qwen2": of_class("Qwen2Tokenizer", "qwen2"),
    "qwen2, vocab and merges": without_json(of_class("Qwen2Tokenizer", "qwen2"), "Qwen2Tokenizer"),
    "qwen3": of_class("Qwen2Tokenizer", "qwen3"),
    "gpt_neox": of_class("GPTNeoXTokenizer", "gpt_neox"),
    "gpt_neox, vocab and merges": without_json(of_class("GPTNeoXTokenizer", "gpt_neox"), "GPTNeoXTokenizer"),
    "llama": of_class("LlamaTokenizer", "llama"),
    "llama, legacy": of_class("LlamaTokenizer", "llama", legacy=True),
    "llama without a space before": of_class("LlamaTokenizer", "llama", add_prefix_space=False),
    "llama, tokenizer.model": sentencepiece(""),
    "llama, tokenizer.model, added_tokens_decoder": sentencepiece("added_tokens_decoder"),
    "llama, tokenizer.model, added_tokens.json": sentencepiece("added_tokens.json"),
    "llama, tokenizer.model, legacy": sentencepiece("added_tokens_decoder", legacy=True),
    "mistral, a space before each stretch": llama_with_prepend,
    "gemma": of_class("GemmaTokenizer", "gemma", unk_token="<unk>", pad_token="<s>", mask_token="</s>"),
    "unigram": unigram,
    "word piece": word_piece,
    "smollm": smollm,
    "falcon": falcon,
    "llama 3": of_label("llama-bpe", "llama"),
    "deepseek-llm": of_label("deepseek-llm", "llama"),
    "deepseek-coder": of_label("deepseek-coder", "llama"),
    "deepseek-v3": of_label("deepseek-v3", "llama"),
    "gpt-4o": of_label("gpt-4o", "phi"),
    "tekken": of_label("tekken", "mistral"),
    "bloom": of_label("bloom", "gpt2"),
    "starcoder": of_label("smollm", "gpt2"),
    "viking": of_label("viking", "llama"),
}


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "hf"
    FOLDERS[request.param](path)
    return path


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    transformers.logging.set_verbosity_error()
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def ours(folder: Path) -> Tokenizer:
    found = find_tokenizer(folder)
    assert found is not None
    return found.tokenizer


def test_ids_of_200_texts_are_those_of_transformers(ours: Tokenizer, theirs: Any) -> None:
    for text in texts():
        assert ours.encode(text).tolist() == theirs.encode(text, add_special_tokens=False), repr(text)


def test_ids_of_a_long_text_are_those_of_transformers(ours: Tokenizer, theirs: Any) -> None:
    text = " ".join(texts())
    assert ours.encode(text).tolist() == theirs.encode(text, add_special_tokens=False)


def test_every_token_has_the_id_that_it_has_there(ours: Tokenizer, theirs: Any) -> None:
    assert {name: ours.token_named(name) for name in theirs.get_vocab()} == theirs.get_vocab()
    assert ours.n_vocab == len(theirs)


def test_special_tokens_are_those_of_transformers(ours: Tokenizer, theirs: Any) -> None:
    assert ours.eos_id == theirs.eos_token_id
    if theirs.bos_token_id is not None:
        assert ours.bos_id == theirs.bos_token_id


# ---------------------------------------------------------------- conversations

CHATML = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "llama 2": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}",
    "zephyr": "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + (eos_token or '') }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "generation": "{%- for m in messages %}{%- if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>\n"
    "{% endgeneration %}{%- else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{%- endif %}{%- endfor %}",
    "tojson": "{{ messages | tojson(indent=2) }}{{ messages[0] | tojson(separators=(',', ':'), sort_keys=True) }}"
    "{{ messages | tojson(ensure_ascii=True) }}",
    "loop controls": "{% for m in messages %}{% if loop.index > 3 %}{% break %}{% endif %}{% if m.role == 'system' %}"
    "{% continue %}{% endif %}<|im_start|>{{ m.content }}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{{ ns.n }}: {{ m.content }} "
    "{% endfor %}{{ 'tools' if tools else 'none' }}{{ unk_token }}{{ pad_token if pad_token is defined }}",
    "trimmed": "  {%- for m in messages -%}\n   {% if loop.first %}\n{{ bos_token }}\n   {% endif %}\n"
    "<tool> {{ m['content'] | trim }} <mask>\n{%- endfor %}",
    "macro": "{% macro one(m) %}<|im_start|>{{ m.role | upper }}: {{ m.content[:20] }}{% endmacro %}"
    "{% for m in messages %}{{ one(m) }}{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}",
    "filters": "{% for m in messages | rejectattr('role', 'equalto', 'system') %}"
    "{{ m.content | replace('a', '<mask>') }}|"
    "{{ m.content.split(' ') | join('_') }}{% endfor %}{{ messages | map(attribute='role') | list }}",
}  # fmt: skip


def talks() -> Iterator[list[dict[str, str]]]:
    rng = random.Random(1)
    for i in range(N_TALKS):
        roles = (["system"] if i % 2 else []) + ["user", "assistant"] * (i % 3) + ["user"]
        yield [{"role": role, "content": " ".join(rng.choices(WORDS, k=rng.randint(1, 9)))} for role in roles]


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_of_20_conversations_are_those_of_transformers(name: str, ours: Tokenizer, theirs: Any) -> None:
    template = chat.Template(TEMPLATES[name], ours)
    for messages in talks():
        rendered = templateprocess.render(TEMPLATES[name], template.variables(messages), chat.MAX_PROMPT)  # type: ignore[arg-type]
        found = chat.encode(rendered, ours).tolist()
        wanted = theirs.apply_chat_template(
            messages, chat_template=TEMPLATES[name], add_generation_prompt=True, return_dict=False
        )
        assert found == wanted, theirs.apply_chat_template(
            messages, chat_template=TEMPLATES[name], add_generation_prompt=True, tokenize=False
        )


# ---------------------------------------------------------------- what cannot be the same


def test_an_expression_that_is_not_known_is_refused_by_its_text(tmp_path: Path) -> None:
    of_file(byte_level(*split(r"(\w+\s)+?")), tmp_path / "hf", "llama")
    with pytest.raises(UnsupportedError, match=r"tokenizer\.json: .*\(\\\\w\+"):
        find_tokenizer(tmp_path / "hf")


def test_the_tokenizer_of_a_real_folder_is_that_of_transformers() -> None:
    path = REAL / "gptneox-shakespeare"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    found, theirs = find_tokenizer(path), transformers.AutoTokenizer.from_pretrained(path)
    assert found is not None
    for text in texts():
        assert found.tokenizer.encode(text).tolist() == theirs.encode(text, add_special_tokens=False)
