"""Choosing tokens, windows, streaming, finding a model's parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import ggmlgraph as gg
from ggmlgraph.cli import main
from ggmlgraph.data.corpus import SINE_ALPHABET
from ggmlgraph.errors import CheckpointError, DataError, FormatError, GGError, UsageError
from ggmlgraph.generation import generate, wave
from ggmlgraph.generation.choice import choose
from ggmlgraph.generation.decoding import CachedReader, WindowReader
from ggmlgraph.generation.generate import Generator, Written
from ggmlgraph.generation.sampling import Sampling
from ggmlgraph.models import llama
from ggmlgraph.tokenizers.plain import BytesTokenizer, CharsTokenizer
from ggmlgraph.tokenizers.settings import Settings

LOGITS = np.log(np.array([0.1, 0.5, 0.15, 0.25], np.float32))
GREEDY = Sampling(temperature=0)


def save(path: Path, n_vocab: int = 256, tokenizer: bytes | None = None, corpus: str | None = None) -> Path:
    config = llama.Config(n_vocab=n_vocab, n_embd=16, n_head=2, n_layer=1, n_ff=24)
    gg.trace(llama.loss, config, batch=2, ctx=8).save(path, tokenizer=tokenizer, corpus=corpus)
    return path


@pytest.fixture
def generator(tmp_path: Path) -> Generator:
    return Generator(gg.Runtime(save(tmp_path / "g.bin"), threads=1), BytesTokenizer())


def shares(how: Sampling) -> list[float]:
    drawn = [choose(LOGITS, how, (i + 0.5) / 1000) for i in range(1000)]
    return [drawn.count(token) / 1000 for token in range(4)]


def test_temperature_0_takes_the_likeliest() -> None:
    assert choose(LOGITS, GREEDY, 0.999) == 1


def test_temperature_1_draws_with_the_models_probabilities() -> None:
    assert shares(Sampling(1.0, top_k=0, top_p=1.0)) == pytest.approx([0.1, 0.5, 0.15, 0.25], abs=0.002)


def test_a_lower_temperature_sharpens() -> None:
    squares = np.array([0.1, 0.5, 0.15, 0.25]) ** 2
    assert shares(Sampling(0.5, top_k=0, top_p=1.0)) == pytest.approx(list(squares / squares.sum()), abs=0.002)


def test_top_k_keeps_the_k_likeliest() -> None:
    assert shares(Sampling(1.0, top_k=2, top_p=1.0)) == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=0.002)


def test_top_p_keeps_the_fewest_of_that_probability() -> None:
    assert shares(Sampling(1.0, top_k=0, top_p=0.7)) == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=0.002)


def test_a_tiny_top_p_keeps_one() -> None:
    assert shares(Sampling(1.0, top_k=0, top_p=1e-9)) == [0, 1, 0, 0]


def test_the_largest_uniform_number_draws_a_token() -> None:
    assert choose(LOGITS, Sampling(1.0, top_k=0, top_p=1.0), np.nextafter(1.0, 0.0)) == 0


def test_logits_that_are_not_finite_are_an_error() -> None:
    with pytest.raises(GGError, match="not finite"):
        choose(np.array([0, np.nan], np.float32), GREEDY, 0.5)


def test_min_p_keeps_what_is_that_likely_measured_by_the_likeliest() -> None:
    assert shares(Sampling(1.0, top_k=0, top_p=1.0, min_p=0.49)) == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=0.002)


def test_min_p_1_keeps_the_likeliest() -> None:
    assert shares(Sampling(1.0, top_k=0, top_p=1.0, min_p=1.0)) == [0, 1, 0, 0]


def test_among_equals_top_k_keeps_the_lower_ids() -> None:
    drawn = {choose(np.ones(9, np.float32), Sampling(1.0, 3, 1.0), u) for u in np.linspace(0, 0.99, 50)}
    assert drawn == {0, 1, 2}


def test_a_repeated_token_is_penalised() -> None:
    logits = np.array([3.0, 2.0, -1.0], np.float32)
    assert choose(logits, Sampling(0, repeat_penalty=2.0), 0.5, [0]) == 1
    assert choose(-logits, Sampling(0, repeat_penalty=4.0), 0.5, [2]) == 2


def test_a_token_longer_ago_than_64_is_not_penalised() -> None:
    logits = np.array([3.0, 2.0, -1.0], np.float32)
    assert choose(logits, Sampling(0, repeat_penalty=2.0), 0.5, [0, *[2] * 64]) == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ((-1.0,), "temperature"),
        ((1.0, 0, 1.0, 0, 2.0), "min-p"),
        ((1.0, 0, 1.0, 0, 0.0, 0.0), "repeat-penalty"),
        ((float("nan"),), "temperature"),
        ((1.0, -1), "top-k"),
        ((1.0, 0, 0.0), "top-p"),
    ],
)
def test_sampling_options_out_of_range_are_usage_errors(options: tuple[float, ...], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Sampling(*options)  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_text(generator: Generator) -> None:
    assert "".join(generator.text("abc", 6, Sampling(seed=3))) == "".join(generator.text("abc", 6, Sampling(seed=3)))


def test_another_seed_gives_another_text(generator: Generator) -> None:
    texts = {tuple(generator.tokens(np.array([65], np.int32), 8, Sampling(2.0, 0, 1.0, seed))) for seed in range(3)}
    assert len(texts) == 3


def test_padding_behind_the_last_token_changes_nothing(tmp_path: Path) -> None:
    path = save(tmp_path / "g.bin")
    tokens = np.array([[65, 66, 67]], np.int32)
    short, long = (WindowReader(gg.Runtime(path, threads=1, ctx=ctx)).advance(tokens) for ctx in (3, 32))
    np.testing.assert_allclose(short, long, atol=1e-6)


def test_a_prompt_longer_than_ctx_counts_from_its_end(generator: Generator) -> None:
    long = np.arange(30, dtype=np.int32)
    assert list(generator.tokens(long, 3, GREEDY)) == list(generator.tokens(long[-8:], 3, GREEDY))


def test_the_text_begins_with_the_prompt(generator: Generator) -> None:
    assert "".join(generator.text("Grüße ", 2, Sampling())).startswith("Grüße ")


def test_predict_0_is_the_prompt_alone(generator: Generator) -> None:
    assert "".join(generator.text("abc", 0, Sampling())) == "abc"


def test_an_empty_prompt_begins_after_a_line_feed(generator: Generator) -> None:
    after = list(generator.tokens(np.array([10], np.int32), 4, GREEDY))
    assert "".join(generator.text("", 4, GREEDY)) == BytesTokenizer().decode(after)


def test_an_alphabet_without_line_feed_begins_with_its_first_character() -> None:
    assert generate.first_token(CharsTokenizer("ab")).tolist() == [0]


def test_the_end_of_text_token_ends_the_text(generator: Generator) -> None:
    (likeliest,) = generator.tokens(np.array([65], np.int32), 1, GREEDY)
    generator.tokenizer.eos_id = likeliest
    assert list(generator.tokens(np.array([65], np.int32), 5, GREEDY)) == []


def test_any_of_several_tokens_ends_the_text(generator: Generator) -> None:
    (likeliest,) = generator.tokens(np.array([65], np.int32), 1, GREEDY)
    generator.tokenizer.apply(Settings(ends=(likeliest, 3)))
    assert list(generator.tokens(np.array([65], np.int32), 5, GREEDY)) == []
    with pytest.raises(FormatError, match="said to end at 256, which is none of its tokens"):
        generator.tokenizer.apply(Settings(ends=(256,)))


def test_ids_beyond_the_tokenizers_are_never_drawn(tmp_path: Path) -> None:
    path = save(tmp_path / "g.bin", n_vocab=64)
    tokens = Generator(gg.Runtime(path, threads=1), CharsTokenizer("abc")).tokens(
        np.array([0], np.int32), 30, Sampling(5.0, 0, 1.0)
    )
    assert max(tokens) <= 2


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "g.bin", n_vocab=64)
    with pytest.raises(DataError, match="256 ids, the model's n_vocab is 64"):
        Generator(gg.Runtime(path, threads=1), BytesTokenizer())


# ---------------------------------------------------------------- what a person should know


def test_a_model_that_is_read_bit_by_bit_and_a_prompt_that_fits_need_no_note(generator: Generator) -> None:
    assert list(generator.notes(["abcd", ""])) == []


def test_a_prompt_that_is_cut_is_told(generator: Generator) -> None:
    (note,) = generator.notes(["abcd", "x" * 20])
    assert note.startswith("a prompt of 20 tokens counts from its end: the window is 8 tokens")


def test_why_a_model_is_slow_is_told(tmp_path: Path) -> None:
    slow = recomputing(save(tmp_path / "g.bin"))
    assert list(slow.notes([])) == ["slow: each token computes the whole window anew, because it was asked for"]


def test_generate_tells_on_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "g.bin", tokenizer=BytesTokenizer().to_bytes())
    assert main.run(["generate", str(path), "-p", "x" * 20, "-n", "1"]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("a prompt of 20 tokens")
    assert said.out.startswith("x" * 20)


# ---------------------------------------------------------------- windows, batches, stop strings


def recomputing(path: Path, batch: int = 1) -> Generator:
    """Computes the window anew for every token."""
    runtime = gg.Runtime(path, threads=1)
    generator = Generator(runtime, BytesTokenizer())
    generator.reader = WindowReader(runtime, batch, "it was asked for")
    return generator


def test_with_its_cache_a_model_says_what_it_says_without(tmp_path: Path) -> None:
    path = save(tmp_path / "g.bin")
    cached = Generator(gg.Runtime(path, threads=1), BytesTokenizer())
    assert isinstance(cached.reader, CachedReader)
    said = "".join(cached.text("abcd", 40, GREEDY))  # ctx is 8: the window is full again and again
    assert said == "".join(recomputing(path).text("abcd", 40, GREEDY))


def test_a_full_window_goes_on_with_its_last_half(generator: Generator) -> None:
    ids = list(generator.tokens(np.arange(5, dtype=np.int32), 12, GREEDY))
    text = [*range(5), *ids]
    for n in (9, 13):  # tokens read when the window of 8 is full: a slide to the last 4, and one more
        again = list(generator.tokens(np.array(text[n - 5 : n], np.int32), 1, GREEDY))
        assert again == [text[n]]


def test_a_window_goes_on_behind_the_begin_of_text_token(generator: Generator) -> None:
    generator.tokenizer.bos_id, generator.tokenizer.adds_bos = 7, True
    assert generator.ids("ab").tolist() == [7, 97, 98]
    assert generator._window(list(range(20, 40)), 4) == [7, 37, 38, 39]


PROMPTS = ["a", "Once upon", "xyz", "", "a longer prompt than all others"]


@pytest.mark.parametrize("how", [GREEDY, Sampling(1.5, seed=5)], ids=["greedy", "drawn"])
def test_prompts_in_a_batch_are_continued_as_each_alone(how: Sampling, tmp_path: Path) -> None:
    path = save(tmp_path / "g.bin")
    together = Generator(gg.Runtime(path, threads=1), BytesTokenizer(), batch=3).texts(PROMPTS, 20, how)
    alone = Generator(gg.Runtime(path, threads=1), BytesTokenizer())
    assert together == ["".join(alone.text(prompt, 20, how)) for prompt in PROMPTS]


def test_a_text_of_a_batch_ends_by_itself(generator: Generator, tmp_path: Path) -> None:
    first = "".join(generator.text("a", 9, GREEDY))
    batch = Generator(gg.Runtime(tmp_path / "g.bin", threads=1), BytesTokenizer(), batch=2)
    (likeliest,) = generator.tokens(np.array([98], np.int32), 1, GREEDY)
    batch.tokenizer.eos_id = likeliest
    texts = batch.texts(["a", "b"], 9, GREEDY)
    assert texts[1] == "b"
    assert first.startswith(texts[0])


def test_a_stop_string_ends_the_text_before_it(generator: Generator) -> None:
    said = "".join(generator.text("abc", 40, GREEDY)).removeprefix("abc")
    stop = said[6:9]
    assert "".join(generator.text("abc", 40, GREEDY, stop=[stop, "no such text"])) == "abc" + said[: said.index(stop)]
    assert generator.texts(["abc"], 40, GREEDY, stop=[stop]) == ["abc" + said[: said.index(stop)]]


def pieces_of(text: str, stop: list[str]) -> list[str]:
    """What is shown of a text whose characters come one by one."""
    tokenizer = CharsTokenizer("".join(sorted(set(text))))
    written = Written(tokenizer, tokenizer.encode(""), stop)
    shown = []
    for token in tokenizer.encode(text):
        shown.append(written.push(token))
        if written.stopped:
            return shown
    return [*shown, written.finish()]


def test_a_stop_string_that_comes_in_pieces_is_not_shown() -> None:
    assert "".join(pieces_of("one END two", ["END"])) == "one "


def test_what_only_looked_like_a_stop_string_is_shown_as_soon_as_that_is_clear() -> None:
    shown = pieces_of("EN! ENE", ["END"])
    assert shown[:3] == ["", "", "EN!"]
    assert "".join(shown) == "EN! ENE"


def test_the_earliest_of_several_stop_strings_counts() -> None:
    assert "".join(pieces_of("abcabd", ["d", "ca"])) == "ab"


def test_a_character_is_shown_when_all_its_bytes_are_there() -> None:
    written = Written(BytesTokenizer(), np.empty(0, np.int32), ["!"])
    assert [written.push(byte) for byte in "ü€!".encode()] == ["", "ü", "", "", "€", ""]


def test_a_text_that_begins_like_the_last_is_read_from_where_it_differs(generator: Generator) -> None:
    first = list(generator.tokens(np.array([1, 2, 3], np.int32), 2, GREEDY))
    read: list[int] = []
    advance = generator.reader.advance

    def noting(tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        read.extend(tokens[0].tolist())
        return advance(tokens)

    generator.reader.advance = noting  # type: ignore[method-assign]
    prompt = np.array([1, 2, 3, first[0], 9], np.int32)
    reused = list(generator.tokens(prompt, 1, GREEDY, reuse=True))
    assert read == [9]
    assert reused == list(generator.tokens(prompt, 1, GREEDY))


# ---------------------------------------------------------------- a model's parts


def test_a_graph_file_brings_its_tokenizer(tmp_path: Path) -> None:
    path = save(tmp_path / "g.bin", 3, CharsTokenizer("abc").to_bytes())
    runtime, tokenizer = generate.open_model(path, threads=1)
    assert (runtime.window, tokenizer.n_vocab) == ((2, 8), 3)


def test_a_graph_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tokenizer"):
        generate.open_model(save(tmp_path / "g.bin"), threads=1)


def test_a_run_without_checkpoint_is_named(tmp_path: Path) -> None:
    save(tmp_path / "graph.bin")
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        generate.open_model(tmp_path, threads=1)


def test_a_directory_that_is_no_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(CheckpointError, match="no run directory"):
        generate.open_model(tmp_path / "d", threads=1)


def test_a_checkpoints_weights_replace_the_graphs(tmp_path: Path) -> None:
    path = save(tmp_path / "graph.bin", 3, CharsTokenizer("abc").to_bytes())
    with gg.Runtime(path, threads=1) as rt:
        rt.set("output.weight", np.full((3, 16), 0.5, np.float32))
        rt.save(tmp_path / "step_000001")
    for where in (tmp_path, tmp_path / "step_000001"):
        runtime, _ = generate.open_model(where, threads=1)
        assert (runtime.get("output.weight") == 0.5).all()


# ---------------------------------------------------------------- the sine


def test_the_true_wave_goes_on_where_the_prompt_ends() -> None:
    tokenizer = CharsTokenizer(SINE_ALPHABET)
    two = tokenizer.encode(wave.PROMPT * 2)
    continued = wave.continuation(two[:40], len(two) - 40)
    assert continued is not None
    np.testing.assert_array_equal(continued, two[40:])


def test_a_prompt_off_the_wave_has_no_continuation() -> None:
    assert wave.continuation(np.array([0, 7, 0], np.int32), 5) is None


def test_the_report_counts_matching_levels() -> None:
    tokenizer = CharsTokenizer(SINE_ALPHABET)
    wrong = SINE_ALPHABET[0] if wave.PROMPT[0] != SINE_ALPHABET[0] else SINE_ALPHABET[1]
    lines = wave.report(wave.PROMPT + wrong + wave.PROMPT[1:10], wave.PROMPT, tokenizer)
    assert lines[0].split()[1] == wrong + wave.PROMPT[1:10]
    assert lines[1].split()[1] == wave.PROMPT[:10]
    assert lines[2] == "90.0% of 10 levels match the sine"
