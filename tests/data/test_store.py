"""Token stores: what is written is read, what was changed is told, work that was killed goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ggmlgraph.cli import main
from ggmlgraph.data import prepare as module
from ggmlgraph.data.others import open_tokens
from ggmlgraph.data.prepare import Plan, prepare
from ggmlgraph.data.store import BLOCK, TokenStore, open_store
from ggmlgraph.data.text import TextData
from ggmlgraph.errors import DataError, FormatError, UsageError
from ggmlgraph.tokenizers.base import Tokenizer
from ggmlgraph.tokenizers.plain import BytesTokenizer
from ggmlgraph.tokenizers.training import train_tokenizer

BYTES = BytesTokenizer()
WORDS = "the fox 日本語 猫 jumps, over 吾輩は猫である lazy dogs\n"


def texts(n: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(WORDS, k=rng.randrange(1, 400))) for _ in range(n)]


def write(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_tokenizer(texts(300), tmp_path_factory.mktemp("tokenizer") / "x.model", n_vocab=330)


def wanted(documents: list[str], tokenizer: Tokenizer) -> list[int]:
    return [i for text in documents if text for i in [*tokenizer.encode(text).tolist(), tokenizer.eos_id]]


def plan(tokenizer: Tokenizer, **options: object) -> Plan:
    return Plan(**{"end": tokenizer.eos_id, "n_processes": 1, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("n_processes", [1, 2, 3])
def test_a_store_has_the_ids_of_each_document_and_where_they_end(
    tmp_path: Path, tokenizer: Tokenizer, n_processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCH", 1000)
    given = [*texts(200), "", "x" * 20000]
    path = write(tmp_path / "a.jsonl", given)
    store = prepare([path], tokenizer, tmp_path / "s", plan(tokenizer, n_processes=n_processes, shard_tokens=5000))
    assert store.ids.tolist() == wanted(given, tokenizer)
    assert len(store.files) > 3
    ends = np.cumsum([len(tokenizer.encode(text)) + 1 for text in given if text])
    assert store.documents.tolist() == ends.tolist()
    assert store.manifest is not None
    (report,) = store.manifest.sources
    assert (report.n_documents, report.n_tokens) == (201, store.n_tokens)
    assert (report.nbytes, report.n_chars) == (sum(len(t.encode()) for t in given), sum(map(len, given)))
    assert report.skipped["empty"].first == "document 201"
    store.verify()


def test_a_text_of_many_segments_has_the_ids_of_the_whole(tmp_path: Path, tokenizer: Tokenizer) -> None:
    text = "".join(texts(500))
    (tmp_path / "a.txt").write_text(text)
    store = prepare([tmp_path / "a.txt"], tokenizer, tmp_path / "s", plan(tokenizer))
    assert store.ids.tolist() == wanted([text], tokenizer)


def test_documents_of_the_same_words_are_left_out_if_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ["a b", "c", "a  b\n"])
    write(tmp_path / "b.jsonl", [" c", "d"])
    store = prepare([tmp_path], BYTES, tmp_path / "s", Plan(deduplicate=True))
    assert bytes(store.ids.tolist()) == b"a bcd"
    assert store.manifest is not None
    assert [each.skipped["there already"].n for each in store.manifest.sources] == [1, 1]


def test_a_store_is_the_same_bytes_whatever_the_number_of_processes(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCH", 500)
    path = write(tmp_path / "a.jsonl", texts(100))
    stores = [prepare([path], tokenizer, tmp_path / str(n), plan(tokenizer, n_processes=n)) for n in (1, 2)]
    names = sorted(each.name for each in stores[0].path.iterdir())
    assert names == sorted(each.name for each in stores[1].path.iterdir())
    assert all((stores[0].path / name).read_bytes() == (stores[1].path / name).read_bytes() for name in names)
    assert stores[0].digest == stores[1].digest


# ---------------------------------------------------------------- what was changed


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    (tmp_path / "a.txt").write_bytes(random.Random(0).randbytes(100_000).hex().encode())
    return prepare([tmp_path / "a.txt"], BYTES, tmp_path / "s", Plan())


def test_every_changed_byte_of_a_store_is_told(store: TokenStore, check_each: Callable[..., None]) -> None:
    rng = random.Random(1)
    files = sorted(store.path.iterdir())

    def check(case: tuple[str, int, int]) -> None:
        path, at, bit = store.path / case[0], case[1], case[2]
        data = bytearray(path.read_bytes())
        data[at] ^= 1 << bit
        path.write_bytes(data)
        try:
            with pytest.raises((FormatError, DataError)):
                open_store(store.path).verify()
        finally:
            data[at] ^= 1 << bit
            path.write_bytes(data)

    cases = [(path.name, rng.randrange(path.stat().st_size), rng.randrange(8)) for path in files for _ in range(40)]
    check_each(cases, check)
    open_store(store.path).verify()


def test_a_changed_block_is_told_when_it_is_read_and_not_before(store: TokenStore) -> None:
    path = store.files[0].path
    data = bytearray(path.read_bytes())
    data[3 * BLOCK + 10] ^= 1
    path.write_bytes(data)
    opened = open_store(store.path)
    opened.at(np.array([0]), 1000)
    with pytest.raises(DataError, match=rf"000000\.ids: bytes {3 * BLOCK} to {4 * BLOCK} are not what was written"):
        opened.at(np.array([3 * BLOCK // 2 + 100]), 10)


def test_windows_cross_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH", 50)
    path = write(tmp_path / "a.jsonl", [f"{i:03}" for i in range(300)])
    store = prepare([path], BYTES, tmp_path / "s", Plan(shard_tokens=7, n_processes=1))
    assert len(store.files) > 15
    text = b"".join(b"%03d" % i for i in range(300))
    data = TextData(store, 100, 0, n_vocab=256)
    for step in range(10):
        (inputs,), (targets,) = data.batch(step, 1)
        assert bytes([*inputs, targets[-1]]) in text


def test_hostile_manifests_are_refused(store: TokenStore, check_each: Callable[..., None]) -> None:
    from ggmlgraph.data.store import MANIFEST, content_hash

    path = store.path / MANIFEST
    good = json.loads(path.read_bytes())["manifest"]
    shard = good["shards"][0]
    changes: list[dict[str, object]] = [
        {"dtype": "<O8"}, {"version": 2}, {"shards": [shard, shard]}, {"shards": [shard | {"name": "../x"}]},
        {"shards": [shard | {"n_tokens": -1}]}, {"shards": [shard | {"n_tokens": 1 << 60}]}, {"max_id": 256},
        {"shards": [shard | {"n_tokens": shard["n_tokens"] + 1}]}, {"extra": 1}, {"shards": None}, {"dtype": "<u4"},
        {"shards": [shard | {"sums": "0"}]},
    ]  # fmt: skip

    def check(change: dict[str, object]) -> None:
        text = json.dumps(good | change)
        path.write_text(f'{{"manifest": {text}, "blake2b": "{content_hash(text.encode())}"}}')
        with pytest.raises(FormatError):
            open_store(store.path)

    check_each(changes, check)


# ---------------------------------------------------------------- killed, and gone on with

KILLED = """
import sys
from pathlib import Path
from ggmlgraph.data import prepare as module
from ggmlgraph.tokenizers.plain import BytesTokenizer
module._BATCH = 2000
told = lambda each: print(each.n_tokens, flush=True)
plan = module.Plan(end=0, deduplicate=True, most_bad=99, n_processes=1, shard_tokens=10000)
if __name__ == "__main__":
    module.prepare([sys.argv[1]], BytesTokenizer(), Path(sys.argv[2]), plan, told)
"""


def test_a_preparation_that_is_killed_anywhere_goes_on_to_the_same_store(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(4):
        write(folder / f"{i}.jsonl", [*texts(300, seed=i), "again", ""])
        with (folder / f"{i}.jsonl").open("ab") as file:
            file.write(b"bad\n")
    command = [sys.executable, "-P", "-c", KILLED, str(folder)]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    rng, n_killed = random.Random(3), 0
    while not (tmp_path / "killed").exists():
        process = subprocess.Popen([*command, str(tmp_path / "killed")], stdout=subprocess.PIPE)
        assert process.stdout is not None
        for _ in range(rng.randrange(8, 40)):
            if not process.stdout.readline():
                break
        time.sleep(rng.uniform(0, 0.003))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        n_killed += process.returncode == -signal.SIGKILL
    assert n_killed > 3
    names = sorted(os.listdir(tmp_path / "whole"))  # noqa: PTH208
    assert sorted(os.listdir(tmp_path / "killed")) == names  # noqa: PTH208
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name
    assert sorted(os.listdir(tmp_path)) == ["killed", "texts", "whole"]  # noqa: PTH208


def test_other_sources_begin_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH", 100)
    path = write(tmp_path / "a.jsonl", [*texts(50), "\udcff"])
    begun = Plan(shard_tokens=100, n_processes=1)
    with pytest.raises(DataError):
        prepare([path], BYTES, tmp_path / "s", begun)
    write(path, ["ab"])
    assert bytes(prepare([path], BYTES, tmp_path / "s", begun).ids.tolist()) == b"ab"


def test_a_store_that_is_there_is_not_written_over(store: TokenStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is there already"):
        prepare([tmp_path / "a.txt"], BYTES, store.path, Plan())


def test_nothing_of_a_failed_preparation_has_the_stores_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc\xff")
    with pytest.raises(DataError, match=r"byte 3 \(0xff\): not UTF-8; `data prepare --max-bad"):
        prepare([tmp_path / "a"], BYTES, tmp_path / "s", Plan())
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# ---------------------------------------------------------------- commands


def test_the_commands_make_and_show_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("one\n\n二\n\nthree")
    words = ["data", "prepare", str(tmp_path / "a.txt"), "--split", "blank-line", "-o", str(tmp_path / "s")]
    assert main.run(words) == 0
    out = capsys.readouterr()
    assert "11 tokens in 1 file, 3 documents of 1 source" in out.out
    assert "no end-of-text token" in out.err
    assert main.run(["data", "show", str(tmp_path / "s"), "--first", "2", "-n", "2"]) == 0
    assert capsys.readouterr().out == "document 2: 3 tokens\n二\ndocument 3: 5 tokens\nthree\n"
    assert main.run(["data", "stats", str(tmp_path / "s"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["tokens"], facts["characters"], facts["documents"]) == (11, 9, 3)
    assert main.run(["data", "stats", str(tmp_path / "s"), "--verify"]) == 0


def test_a_store_of_another_tokenizer_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.jsonl", texts(50))
    prepare([path], tokenizer, tmp_path / "s", plan(tokenizer))
    graph = str(tmp_path / "g.bin")
    assert (
        main.run(["export", "llama", "n_embd=16", "n_head=2", "n_layer=1", "n_ff=24", "--ctx", "8", "-o", graph]) == 0
    )
    words = ["train", graph, "--steps", "1", "-o", str(tmp_path / "run"), "--data", str(tmp_path / "s")]
    assert main.run(words) == 1
    assert "was made with another tokenizer than the model's" in capsys.readouterr().err


def test_stores_and_texts_are_not_one_source(store: TokenStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a\.txt is no token store, and .*s is one"):
        open_tokens([str(store.path), str(tmp_path / "a.txt")])
    assert open_tokens([str(tmp_path / "a.txt")]) is None
    both = open_tokens([str(store.path), str(store.path)])
    assert both is not None
    assert both.n_tokens == store.n_tokens
