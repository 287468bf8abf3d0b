"""The command line: every command once, and every bad input as one line with its exit status."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

import ggmlgraph as gg
from ggmlgraph.cli import main
from ggmlgraph.core.encoding import ENCODED
from ggmlgraph.core.levels import MATMUL_PRECISIONS, isa_levels
from ggmlgraph.data.documents import lines_of
from ggmlgraph.graphfile.reader import read
from ggmlgraph.interchange import exportgguf
from ggmlgraph.interchange.sources.ggml import ORDERS
from ggmlgraph.interchange.tokenizer import load_tokenizer
from ggmlgraph.tokenizers.leaf import tokenizer_from_bytes
from ggmlgraph.tokenizers.training import train_tokenizer
from ggmlgraph.tracing import architectures
from ggmlgraph.training.config import TrainConfig

COMMAND = [sys.executable, "-P", "-c", "from ggmlgraph.cli.main import main; main()"]
TINY = ["n_embd=16", "n_head=2", "n_layer=1", "n_ff=24"]
TEXT = "the quick brown fox jumps over the lazy dog\n" * 40
MODEL = """
from __future__ import annotations
from dataclasses import dataclass
import ggmlgraph as gg

@dataclass(frozen=True)
class Sizes:
    n_vocab: int = 256
    width: int = 8
    scale: float = 1.0
    tied: bool = False
    name: str = "x"

def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Sizes) -> gg.Tensor:
    x = p.embedding("token_embd", tokens, c.n_vocab, c.width) * c.scale
    head = "token_embd" if c.tied else "output"
    return p.cross_entropy((p.share if c.tied else p).linear(head, x, c.n_vocab), targets)

def wrong(p, tokens, targets, c: Sizes):
    x = p.embedding("token_embd", tokens, c.n_vocab, c.width)
    return x + p("w", 3)

def broken(p, tokens, targets, c):
    return p.nothing()
"""


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A byte-level LLaMA."""
    path = str(tmp_path_factory.mktemp("graph") / "graph.bin")
    assert main.run(["export", "llama", *TINY, "--batch", "2", "--ctx", "8", "-o", path]) == 0
    return path


@pytest.fixture(scope="module")
def run(graph: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("run")
    (directory / "text").write_text(TEXT)
    options = ["--data", f"{directory}/text", "--steps", "4", "--save-every", "2", "--predict", "3"]
    assert main.run(["train", graph, *options, "-o", f"{directory}/run"]) == 0
    return f"{directory}/run"


def fails(capsys: pytest.CaptureFixture[str], status: int, reason: str, *arguments: str) -> None:
    """The command line ends with this status and one line on stderr that says the reason."""
    capsys.readouterr()
    assert main.run(arguments) == status
    errors = capsys.readouterr().err
    assert errors.startswith("ggmlgraph: error: ")
    assert errors.count("\n") == 1
    assert reason in errors


# ---------------------------------------------------------------- the group


def test_help_of_every_command_is_fast_because_it_imports_neither_numpy_nor_the_runtime() -> None:
    code = (
        "import sys; from ggmlgraph.cli import main\n"
        "for name in ('', *main.COMMANDS, 'tokenizer train'): assert main.run([*name.split(), '--help']) == 0\n"
        "heavy = {'numpy', 'ggmlgraph._runtime', 'rich', 'jinja2', 'gguf', 'sentencepiece', 'safetensors'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert all(name in result.stdout for name in main.COMMANDS)


@pytest.mark.parametrize("name", [*main.COMMANDS, "tokenizer train"])
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([*name.split(), "--help"]) == 0
    assert f"Usage: ggmlgraph {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "option", "known"),
    [
        ("convert", "order", ORDERS),
        ("convert", "dtype", ("f32", *ENCODED)),
        ("export-gguf", "kind", exportgguf.TYPES),
        ("train", "matmul_precision", MATMUL_PRECISIONS),
        ("train", "schedule", get_args(get_type_hints(TrainConfig)["schedule"])),
    ],
)
def test_the_choices_that_an_option_lists_are_those_that_its_command_knows(
    name: str, option: str, known: Iterable[str]
) -> None:
    types: dict[str | None, Any] = {param.name: param.type for param in main.COMMANDS[name].params}
    assert list(types[option].choices) == list(known)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out == f"ggmlgraph {version('ggmlgraph')}\n"


def test_no_command_shows_help_and_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([]) == 2
    assert "Commands:" in capsys.readouterr().err


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, 2, "No such command 'fly'", "fly")


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGMLGRAPH_DEBUG", "1")
    assert main.run(["inspect", "none.bin"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_leaves_early_ends_the_command_quietly(graph: str) -> None:
    process = subprocess.Popen(
        [*COMMAND, "inspect", graph, "--nodes", "--gradient"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


# ---------------------------------------------------------------- export


def test_fields_set_the_config(graph: str) -> None:
    with gg.Runtime(graph) as rt:
        config = rt.metadata.config
        assert (config["n_embd"], config["n_vocab"], rt.sizes) == (16, 256, {"batch": 2, "ctx": 8})


def test_n_vocab_follows_the_tokenizer() -> None:
    train_tokenizer(lines_of(["text.txt"]), "t.model", n_vocab=300)
    assert main.run(["export", "llama", *TINY, "--tokenizer", "t.model", "-o", "g.bin"]) == 0
    with gg.Runtime("g.bin") as rt:
        inside = rt.tokenizer_bytes()
        assert inside is not None
        assert (rt.metadata.config["n_vocab"], tokenizer_from_bytes(inside).n_vocab) == (300, 300)


def test_a_model_brings_its_tokenizer_and_text() -> None:
    assert main.run(["export", "baby_llama", "-o", "g.bin"]) == 0
    with gg.Runtime("g.bin") as rt:
        inside = rt.tokenizer_bytes()
        assert inside is not None
        assert (tokenizer_from_bytes(inside).kind, rt.metadata.corpus) == ("chars", "builtin:sine")


def test_a_vocabulary_without_tokenizer_is_exported_without_one() -> None:
    assert main.run(["export", "llama", *TINY, "n_vocab=500", "-o", "g.bin"]) == 0
    with gg.Runtime("g.bin") as rt:
        assert rt.tokenizer_bytes() is None


def test_the_same_seed_exports_the_same_file() -> None:
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert main.run(["export", "gpt_neox", *TINY, "n_ff=32", "--seed", seed, "-o", name]) == 0
    assert Path("a").read_bytes() == Path("b").read_bytes() != Path("c").read_bytes()


def test_a_model_file_is_exported_by_its_function() -> None:
    Path("my_model.py").write_text(MODEL)
    arguments = ["width=4", "scale=0.5", "tied=true", "name=y"]
    assert main.run(["export", "my_model.py:loss", *arguments, "-o", "g.bin"]) == 0
    with gg.Runtime("g.bin") as rt:
        assert rt.metadata.model == "my_model"
        assert rt.metadata.config == {"n_vocab": 256, "width": 4, "scale": 0.5, "tied": True, "name": "y"}
        assert rt.params == ["token_embd.weight"]


def test_print_shows_the_graph(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my_model.py").write_text(MODEL)
    assert main.run(["export", "my_model.py", "--print"]) == 0
    assert "# my_model.py:17" in capsys.readouterr().out


def test_the_built_in_models_are_found() -> None:
    assert {"llama", "gpt_neox", "baby_llama"} <= set(architectures.built_in())


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["lama", "-o", "g"], 2, "no model 'lama': there are baby_llama, gemma,"),
        (["llama"], 2, "give -o FILE or --print"),
        (["llama", "n_embed=3", "-o", "g"], 2, "llama has no field 'n_embed'; its fields are: n_vocab, n_embd"),
        (["llama", "n_embd", "-o", "g"], 2, "'n_embd' is not FIELD=VALUE"),
        (["llama", "n_embd=big", "-o", "g"], 2, "'big' is no int"),
        (["llama", "tied=perhaps", "-o", "g"], 2, "'perhaps' is no bool"),
        (["llama", "--batch", "0", "-o", "g"], 2, "--batch"),
        (["llama", "--ctx", "1000000000", "-o", "g"], 2, "--ctx"),
        (["llama", "--tokenizer", "none.model", "-o", "g"], 1, "none.model"),
        (["llama", "--tokenizer", "text.txt", "-o", "g"], 1, "text.txt"),
        (["llama", "n_embd=30", "n_head=4", "-o", "g"], 1, "llama.py:"),
        (["none.py:loss", "-o", "g"], 1, "none.py: no such file"),
        (["my_model.py:nothing", "-o", "g"], 2, "my_model.py has no function nothing"),
        (["my_model.py:wrong", "-o", "g"], 1, "my_model.py:21: add"),
        (["my_model.py:broken", "-o", "g"], 1, ": error: my_model.py:24: a p has no 'nothing'"),
        (["syntax.py", "-o", "g"], 1, "syntax.py:2:"),
        (["llama", *TINY, "-o", "nowhere/g"], 1, "nowhere"),
    ],
)
def test_bad_exports(arguments: list[str], status: int, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("my_model.py").write_text(MODEL)
    Path("syntax.py").write_text("x = 1\ndef (:\n")
    fails(capsys, status, reason, "export", *arguments)
    assert not Path("g").exists()


def test_a_tokenizer_larger_than_n_vocab_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    train_tokenizer(lines_of(["text.txt"]), "t.model", n_vocab=300)
    arguments = ["export", "llama", *TINY, "n_vocab=299", "--tokenizer", "t.model", "-o", "g"]
    fails(capsys, 1, "the tokenizer has 300 ids, the model's n_vocab is 299", *arguments)


# ---------------------------------------------------------------- train


def test_a_run_directory_holds_everything(run: str) -> None:
    names = {path.name for path in Path(run).iterdir()}
    files = {".lock", "config.json", "graph.bin", "metrics.jsonl", "events.jsonl"}
    assert names == files | {"step_000002", "step_000004", "best", "tokens"}
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert set(lines[0]) == {"step", "tokens", "loss", "lr", "grad_norm", "tokens_per_s", "elapsed_s"}
    assert lines[3]["tokens"] == 4 * 2 * 8
    assert "val_loss" in lines[3]


def test_what_a_run_costs_is_told_first(graph: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["train", graph, "--data", "text.txt", "--steps", "1", "--accumulate", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["model", "text", "step", "memory", "machine"]
    assert "3 x 2 windows of 8 tokens: 48 tokens" in lines[2]


def test_a_tokenizer_can_come_with_training(capsys: pytest.CaptureFixture[str]) -> None:
    train_tokenizer(lines_of(["text.txt"]), "t.model", n_vocab=300)
    assert main.run(["export", "llama", *TINY, "n_vocab=300", "--ctx", "8", "-o", "g"]) == 0
    arguments = ["train", "g", "--data", "text.txt", "--steps", "1"]
    fails(capsys, 1, "give --tokenizer with 300 ids", *arguments)
    assert main.run([*arguments, "--tokenizer", "t.model"]) == 0
    assert main.run(["generate", "run", "-p", "the", "-n", "2"]) == 0


def test_a_tokenizer_of_another_size_is_refused(graph: str, capsys: pytest.CaptureFixture[str]) -> None:
    train_tokenizer(lines_of(["text.txt"]), "t.model", n_vocab=300)
    arguments = ["--data", "text.txt", "--tokenizer", "t.model"]
    fails(capsys, 1, "has another tokenizer in it", "train", graph, *arguments)
    assert main.run(["export", "llama", *TINY, "n_vocab=400", "-o", "g"]) == 0
    fails(capsys, 1, "the tokenizer has 300 ids, the model's n_vocab is 400", "train", "g", *arguments)


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        ([], 2, "no text to train on: give --data FILE"),
        (["--data", "none.txt"], 1, "none.txt"),
        (["--data", "latin.txt"], 1, "latin.txt: byte 2 (0xe9): not UTF-8"),
        (["--data", "short.txt"], 1, "short.txt has 5 tokens; ctx 8 needs"),
        (["--data", "empty.txt"], 1, "empty.txt: no text, and so no tokens"),
        (["--data", "builtin:none"], 2, "no such corpus"),
        (["--data", "text.txt", "--batch", "0"], 2, "--batch"),
        (["--data", "text.txt", "--ctx", "-1"], 2, "--ctx"),
        (["--data", "text.txt", "--threads", "0"], 2, "--threads 0"),
        (["--data", "text.txt", "--threads", "1000"], 2, "--threads 1000"),
        (["--data", "text.txt", "--lr", "nan"], 2, "--lr"),
        (["--data", "text.txt", "--schedule", "step"], 2, "--schedule"),
        (["--data", "text.txt", "--resume", "none"], 1, "none has no checkpoint"),
        (["--data", "text.txt", "-o", "text.txt"], 2, "text.txt is not a directory"),
    ],
)
def test_bad_training(
    graph: str, arguments: list[str], status: int, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("latin.txt").write_bytes(b"caf\xe9"[1:])
    Path("short.txt").write_text("short")
    Path("empty.txt").touch()
    fails(capsys, status, reason, "train", graph, *arguments)


def test_a_batch_that_does_not_fit_names_one_that_does(graph: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", "text.txt", "--batch", "131072", "--ctx", "512"]
    fails(capsys, 1, "are available: --batch ", "train", graph, *arguments)


@pytest.mark.parametrize("nbytes", [0, 3, 100, 3000])
def test_a_truncated_graph_is_refused(graph: str, nbytes: int, capsys: pytest.CaptureFixture[str]) -> None:
    Path("g").write_bytes(Path(graph).read_bytes()[:nbytes])
    for command in (["train", "g", "--data", "text.txt"], ["generate", "g"], ["inspect", "g"]):
        fails(capsys, 1, "g: ", *command)


def test_missing_graphs_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["train", "none.bin", "--data", "text.txt"], ["generate", "none.bin"], ["inspect", "none.bin"]):
        fails(capsys, 1, "none.bin", *command)


def test_a_checkpoint_of_another_graph_is_refused(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["export", "llama", *TINY, "n_ff=32", "--batch", "2", "--ctx", "8", "-o", "g"]) == 0
    fails(capsys, 1, "is of another graph", "train", "g", "-o", "other", "--resume", f"{run}/step_000004")


def test_a_second_signal_ends_at_once_and_leaves_whole_checkpoints(graph: str) -> None:
    options = ["--data", "text.txt", "--steps", "1000000", "--save-every", "1", "--predict", "0"]
    process = subprocess.Popen([*COMMAND, "train", graph, *options], stdout=subprocess.DEVNULL)
    while process.poll() is None and not Path("run/step_000003").exists():
        time.sleep(0.001)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.001)
    assert process.wait() in (0, -signal.SIGTERM)
    assert main.run(["generate", "run", "-n", "1"]) == 0


# ---------------------------------------------------------------- generate, inspect, the rest


def test_generate_reads_a_run_a_checkpoint_or_a_graph(run: str, graph: str, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for path in (run, f"{run}/step_000004", f"{run}/step_000002", graph):
        capsys.readouterr()
        assert main.run(["generate", path, "-p", "the ", "-n", "8", "--seed", "1"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert all(text.startswith("the ") for text in outputs)


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [(["--temperature", "-1"], 2, "temperature"), (["--top-p", "0"], 2, "top-p"), (["-n", "-1"], 2, "--predict"),
     (["--ctx", "0"], 2, "--ctx"), (["--threads", "0"], 2, "--threads")],
)  # fmt: skip
def test_bad_generation(
    run: str, arguments: list[str], status: int, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(capsys, status, reason, "generate", run, *arguments)


def test_baby_llama_learns_the_sine_in_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["export", "baby_llama", "-o", "baby.bin"]) == 0
    assert main.run(["train", "baby.bin", "-o", "run"]) == 0
    assert main.run(["generate", "run", "-n", "200"]) == 0
    shares = [line.split("%")[0] for line in capsys.readouterr().out.splitlines() if "match the sine" in line]
    assert len(shares) == 2
    assert min(map(float, shares)) >= 95


def test_inspect_shows_parameters_inputs_and_memory(graph: str, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (graph, run):
        assert main.run(["inspect", path]) == 0
        output = capsys.readouterr().out
        facts = ("model       llama: ", "tokens i32[2,8]", "token_embd.weight", "f32[256,16]", "training: ", "logits: ")
        assert [fact for fact in facts if fact not in output] == []


def test_inspect_counts_all_parameters(graph: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["inspect", graph]) == 0
    n = sum(int(np.prod(r.ne)) for r in read(graph).records if r.is_param)
    assert f"parameters  {n:,} in" in capsys.readouterr().out


def test_inspect_names_exact_forms(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["export", "gpt_neox", *TINY, "-o", "g"]) == 0
    assert main.run(["inspect", "g"]) == 0
    assert "gelu_erf in 1 nodes" in capsys.readouterr().out


def test_inspect_can_show_nodes_and_gradients(graph: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["inspect", graph, "--nodes", "--gradient"]) == 0
    output = capsys.readouterr().out
    assert "# models/llama.py:" in output.replace("ggmlgraph/", "")
    assert "= adamw(%token_embd.weight, " in output


def test_a_tokenizer_is_trained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["tokenizer", "train", "text.txt", "--n-vocab", "300", "-o", "t.model"]) == 0
    assert load_tokenizer("t.model").n_vocab == 300
    fails(capsys, 2, "too high", "tokenizer", "train", "text.txt", "--n-vocab", "9000", "-o", "u.model")
    assert not Path("u.model").exists()


def test_doctor_names_versions_and_the_isa(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    slowest = isa_levels()[-1]
    monkeypatch.setenv("GGMLGRAPH_ISA", slowest)
    assert main.run(["doctor"]) == 0
    output = capsys.readouterr().out
    assert f"runs {slowest} (GGMLGRAPH_ISA)" in output
    assert "safetensors" in output
    assert "GFLOP/s" in output


def test_an_isa_that_is_not_here_is_named(
    graph: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GGMLGRAPH_ISA", "mmx")
    fails(capsys, 2, "GGMLGRAPH_ISA is mmx", "doctor")
    fails(capsys, 1, "ISA level mmx", "train", graph, "--data", "text.txt")
