"""Perplexity by its two definitions, multiple-choice scores, bad questions, the command."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggmlgraph as gg
from ggmlgraph.cli import main
from ggmlgraph.errors import DataError, UsageError
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.generation import evaluate
from ggmlgraph.generation.evaluate import Perplexity, accuracy, perplexity, read_questions
from ggmlgraph.models import llama
from ggmlgraph.tokenizers.plain import BytesTokenizer

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of fools."


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    config = llama.Config(n_vocab=256, n_embd=16, n_head=2, n_layer=1, n_ff=24)
    gg.trace(llama.loss, config, batch=2, ctx=16).save(tmp_path / "g.bin", tokenizer=BytesTokenizer().to_bytes())
    return tmp_path / "g.bin"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "t.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "t.txt"


def opened(graph: Path, ctx: int = 16) -> Runtime:
    """A model far from guessing."""
    runtime = Runtime(graph, threads=1, ctx=ctx)
    output = runtime.weights()["output.weight"]
    output *= 40
    return runtime


def loss_of(runtime: Runtime, ids: Any, first: int) -> list[float]:
    """Nats of each token of `ids` from `first` on, given those before it, in float64."""
    logits = runtime.at(batch=1, ctx=len(ids)).forward("logits", tokens=np.array([ids], np.int32))[0]
    z = logits.reshape(len(ids), -1).astype(np.float64)
    log_p = z - z.max(-1, keepdims=True) - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True))
    return [-float(log_p[i - 1, ids[i]]) for i in range(first, len(ids))]


def ids_of(text: str) -> list[int]:
    return BytesTokenizer().encode(text).tolist()


def last(results: Any) -> Any:
    *_, result = results
    return result


def test_log_probabilities_are_those_of_float64() -> None:
    logits = np.random.default_rng(0).normal(0, 20, (130, 33)).astype(np.float32)
    tokens = np.random.default_rng(1).integers(0, 33, 130).astype(np.int32)
    z = logits.astype(np.float64)
    expected = z[np.arange(130), tokens] - np.log(np.exp(z - z.max()).sum(1)) - z.max()
    np.testing.assert_allclose(evaluate.log_probabilities(logits, tokens), expected, rtol=1e-5, atol=1e-4)


def test_perplexity_scores_the_second_half_of_whole_windows(graph: Path, text: Path) -> None:
    ids = ids_of(TEXT)
    with opened(graph) as rt:
        found = last(perplexity(rt, BytesTokenizer(), text))
        losses = [x for i in range(0, len(ids) - 15, 16) for x in loss_of(rt, ids[i : i + 16], 9)]
    assert (found.n_windows, found.n_tokens) == (len(ids) // 16, len(ids) // 16 * 7)
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert found.value == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)
    assert found.loss_error == pytest.approx(np.std(losses) / math.sqrt(len(losses) - 1), rel=1e-4)


def test_windows_begin_with_the_begin_of_text_token(graph: Path, text: Path) -> None:
    tokenizer = BytesTokenizer()
    tokenizer.bos_id, tokenizer.adds_bos = 3, True
    ids = [3, *ids_of(TEXT)]
    with opened(graph) as rt:
        found = last(perplexity(rt, tokenizer, text))
        losses = [x for i in range(0, len(ids) - 15, 16) for x in loss_of(rt, [3, *ids[i + 1 : i + 16]], 9)]
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_with_a_stride_every_token_but_the_first_is_scored_once(graph: Path, text: Path) -> None:
    ids, losses, scored = ids_of(TEXT), [], 1
    with opened(graph) as rt:
        found = last(perplexity(rt, BytesTokenizer(), text, stride=5))
        for begin in range(0, len(ids), 5):
            losses += loss_of(rt, ids[begin : begin + 16], scored - begin)
            scored = min(begin + 16, len(ids))
            if scored == len(ids):
                break
    assert found.n_tokens == len(ids) - 1 == len(losses)
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("stride", [0, 16, 99])
def test_a_stride_out_of_range_is_a_usage_error(stride: int, graph: Path, text: Path) -> None:
    with opened(graph) as rt, pytest.raises(UsageError, match=f"stride {stride} is not in 1..15"):
        next(perplexity(rt, BytesTokenizer(), text, stride))


def test_a_text_shorter_than_a_window_is_told(graph: Path, text: Path) -> None:
    with opened(graph, ctx=200) as rt, pytest.raises(DataError, match="the text has 103 tokens, one window is 200"):
        next(perplexity(rt, BytesTokenizer(), text))


# ---------------------------------------------------------------- multiple choice


def questions(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_choice_scores_its_log_likelihood_after_the_prompt(graph: Path) -> None:
    with opened(graph, ctx=64) as rt:
        scorer = evaluate._Scorer(rt, BytesTokenizer())
        for prompt, choice in (("Lily has a", "ball"), ("Lily has a", "bat"), ("Lily has ", "no"), ("Tom", "\nran")):
            space = "" if prompt[-1] == " " or choice[0] == "\n" else " "
            expected = -sum(loss_of(rt, ids_of(prompt + space + choice), len(prompt.rstrip())))
            assert scorer.score(prompt, choice) == pytest.approx(expected, rel=1e-4)


def test_a_prompt_longer_than_the_window_counts_from_its_end(graph: Path) -> None:
    with opened(graph) as rt:
        score = evaluate._Scorer(rt, BytesTokenizer()).score(TEXT, "end")
        assert score == pytest.approx(-sum(loss_of(rt, ids_of((TEXT + " end")[-16:]), 12)), rel=1e-4)


def test_accuracy_counts_the_likeliest_choice_and_by_length(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {"a": -3.0, "a longer one": -4.0, "b": -1.0, "bb": -1.5}
    monkeypatch.setattr(evaluate._Scorer, "score", lambda self, prompt, choice: scores[choice])
    path = questions(
        tmp_path / "q.jsonl",
        {"prompt": "?", "choices": ["a", "a longer one"], "answer": 0},
        {"question": "?", "choices": ["b", "bb"], "answer": "bb", "source": "elsewhere"},
        {"prompt": "?", "choices": ["b", "bb"], "answer": 0},
    )
    with opened(graph) as rt:
        found = last(accuracy(rt, BytesTokenizer(), read_questions(path)))
    assert (found.n, found.n_right, found.n_right_by_length) == (3, 2, 1)
    assert found.error(found.value) == pytest.approx(math.sqrt(2 / 3 * 1 / 3 / 2))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "truncated"),
        ('{"prompt": "?", "choices": ["a", "b"]}', "answer"),
        ('{"choices": ["a", "b"], "answer": 0}', "needs a prompt"),
        ('{"prompt": "?", "choices": ["a"], "answer": 0}', "at least two choices"),
        ('{"prompt": "?", "choices": ["a", ""], "answer": 0}', "none empty"),
        ('{"prompt": "?", "choices": ["a", "b"], "answer": 2}', "answer 2 is none of the 2 choices"),
        ('{"prompt": "?", "choices": ["a", "b"], "answer": -1}', "answer -1 is none"),
        ('{"prompt": "?", "choices": ["a", "b"], "answer": "c"}', "answer 'c' is none"),
        ("[" * 5000, "malformed|recursion|Recursion|truncated|Expected"),
    ],
)
def test_a_bad_question_is_told_with_its_line(line: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('\n{"prompt": "?", "choices": ["a", "b"], "answer": 0}\n' + line, encoding="utf-8")
    with pytest.raises(DataError, match=rf"q\.jsonl:3: .*({reason})"):
        read_questions(path)


# ---------------------------------------------------------------- the command


def test_the_command_prints_perplexity(graph: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["eval", str(graph), "--text", str(text), "--threads", "1"]) == 0
    name, value, *_ = capsys.readouterr().out.split()
    assert name == "perplexity"
    assert 240 < float(value) < 280  # a fresh model guesses among 256
    assert main.run(["eval", str(graph), "--text", str(text), "--stride", "8", "--json", "--threads", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == len(TEXT) - 1


def test_the_command_prints_accuracy(graph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = questions(tmp_path / "q.jsonl", {"prompt": "?", "choices": ["a", "b"], "answer": 0})
    assert main.run(["eval", str(graph), "--choices", str(path), "--json", "--threads", "1"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # one question has no standard error
    assert (found["questions"], found["error"], found["error_by_length"]) == (1, None, None)


@pytest.mark.parametrize(("loss", "value"), [(0.0, 1.0), (709.5, math.inf), (1e30, math.inf), (math.inf, math.inf)])
def test_a_perplexity_beyond_all_numbers_is_infinite(loss: float, value: float) -> None:
    assert Perplexity(1, 1, 1, loss, 0.0).value == value


def test_what_is_not_finite_is_null_in_json(graph: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = graph.with_name("run")
    run.mkdir()
    shutil.copyfile(graph, run / "graph.bin")
    with gg.Runtime(graph, threads=1) as runtime:
        runtime.set("output.weight", np.random.default_rng(0).normal(size=(256, 16)) * 1e30)
        runtime.save(run / "step_000001")
    assert main.run(["eval", str(run), "--text", str(text), "--json", "--threads", "1"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (found["perplexity"], found["tokens"]) == (None, 42)


@pytest.mark.parametrize(
    "arguments", [[], ["--text", "t", "--choices", "c"], ["--choices", "c", "--stride", "3"]], ids=" ".join
)
def test_what_to_measure_must_be_said_once(
    arguments: list[str], graph: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["eval", str(graph), *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("ctx", [1, 2])
def test_windows_that_predict_nothing_are_refused(ctx: int, tmp_path: Path) -> None:
    gg.trace(llama.loss, llama.Config(n_vocab=256, n_embd=8, n_head=1, n_layer=1, n_ff=8), ctx=4).save(tmp_path / "g")
    (tmp_path / "text").write_text("abcdefgh")
    with gg.Runtime(tmp_path / "g", threads=1, ctx=ctx) as rt, pytest.raises(UsageError, match="predict nothing"):
        list(perplexity(rt, BytesTokenizer(), tmp_path / "text"))
