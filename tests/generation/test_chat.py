"""Chat templates in their sandbox, conversations that go on, the command on piped input."""

from __future__ import annotations

import io
import resource
from pathlib import Path
from typing import Any

import pytest

import ggmlgraph as gg
from ggmlgraph.cli import main
from ggmlgraph.errors import DataError
from ggmlgraph.generation import chat, choice
from ggmlgraph.generation.chat import Conversation, Template
from ggmlgraph.generation.generate import Generator
from ggmlgraph.generation.sampling import Sampling
from ggmlgraph.models import llama
from ggmlgraph.tokenizers.plain import BytesTokenizer
from ggmlgraph.tokenizers.settings import Settings

GREEDY = Sampling(temperature=0)
CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TALK: list[chat.Message] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


def graph(path: Path, template: str | None = CHATML) -> Path:
    config = llama.Config(n_vocab=256, n_embd=16, n_head=2, n_layer=1, n_ff=24)
    tokenizer = BytesTokenizer().apply(Settings(chat_template=template))
    gg.trace(llama.loss, config, batch=2, ctx=256).save(path, tokenizer=tokenizer.to_bytes())
    return path


@pytest.fixture
def conversation(tmp_path: Path) -> Conversation:
    generator = Generator(gg.Runtime(graph(tmp_path / "g.bin"), threads=1), BytesTokenizer())
    return Conversation(generator, Template(CHATML, BytesTokenizer()), "Be brief.")


def test_a_template_writes_the_conversation_up_to_the_answer() -> None:
    assert Template(CHATML, BytesTokenizer()).render(TALK) == "<|system|>Be brief.\n<|user|>Hi\n<|assistant|>"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% if %}", "Expected an expression"),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "unsafe"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% include 'file' %}", "no loader"),
        ("{{ nothing.at.all }}", "undefined"),
        ("{% for i in range(100000000) %}x{% endfor %}", "Range too big"),
        ("{% for i in range(90000) %}{{ 'x' * 1000 }}{% endfor %}", "writes more than"),
    ],
)
def test_a_bad_template_is_one_line(source: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        Template(source, BytesTokenizer()).render(TALK)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("chat template: ")


HOSTILE = {
    "power": "{{ 9**(9**9) }}",
    "power of variables": "{% set n = 9 %}{% set x = n**(n**n) %}",
    "product of a text": "{{ 'x' * 10**9 }}",
    "product of a list": "{{ [0] * 10**9 }}",
    "centred": "{{ 'x' | center(10**9) }}",
    "indented": "{{ ('\\n' * 10**5) | indent(10**5, true, true) }}",
    "formatted": "{{ '%0999999999d' | format(1) }}",
    "doubled": "{% set n = namespace(x='x') %}{% for i in range(64) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "macro, called in itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "macro, called twice": "{% macro f(n) %}{% if n %}{{ f(n-1) ~ f(n-1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "deep parentheses": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "deep blocks": "{% if 1 %}" * 50_000 + "{% endif %}" * 50_000,
    "long sum": "{{ 1" + "+1" * 200_000 + " }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_ends_soon_in_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "MAX_SECONDS", 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"^chat template: .{3,320}$"):
        Template(HOSTILE[name], BytesTokenizer()).render(TALK)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + (64 << 10)


def test_what_computes_too_long_or_takes_too_much_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "MAX_SECONDS", 1)
    with pytest.raises(DataError, match="takes more than 1 s"):
        Template(HOSTILE["nested loops"], BytesTokenizer()).render(TALK)
    with pytest.raises(DataError, match="needs more than 512 MiB"):
        Template(HOSTILE["product of a list"], BytesTokenizer()).render(TALK)


def test_tojson_keeps_characters() -> None:
    assert Template("{{ messages | tojson }}", BytesTokenizer()).render([{"role": "user", "content": "é<"}]) == (
        '[{"role": "user", "content": "é<"}]'
    )


class Named(BytesTokenizer):
    @property
    def specials(self) -> dict[str, int]:
        return {"<e>": 1, "<end>": 2}


def test_names_of_control_tokens_become_these_tokens() -> None:
    assert chat.encode("a<end>b<e>", Named()).tolist() == [97, 2, 98, 1]


def test_an_answer_ends_at_a_control_token(conversation: Conversation) -> None:
    generator = conversation.generator
    prompt = conversation.template.render([*conversation.messages, {"role": "user", "content": "Hi"}])
    drawn = list(generator.tokens(chat.encode(prompt, BytesTokenizer()), 20, GREEDY))
    last = drawn[5]

    class Ending(BytesTokenizer):
        @property
        def specials(self) -> dict[str, int]:
            return {"<never written>": last}

    generator.tokenizer = Ending()
    answer = "".join(conversation.answer("Hi", 20, GREEDY))
    assert answer == BytesTokenizer().decode(drawn[: drawn.index(last)])


def test_the_answer_becomes_part_of_the_conversation(conversation: Conversation) -> None:
    said = "".join(conversation.answer("Hi", 5, GREEDY))
    assert conversation.messages[1:] == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": said}]


def test_an_answer_stopped_early_is_kept_as_far_as_it_came(conversation: Conversation) -> None:
    answer = conversation.answer("Hi", 50, GREEDY)
    begun = next(answer) + next(answer)
    answer.close()
    assert conversation.messages[-1] == {"role": "assistant", "content": begun}


def test_a_turn_reads_only_what_is_new(conversation: Conversation) -> None:
    list(conversation.answer("Hi", 3, GREEDY))
    reader: Any = conversation.generator.reader
    read: list[int] = []
    advance = reader.advance
    reader.advance = lambda tokens: (read.append(tokens.shape[1]), advance(tokens))[1]
    list(conversation.answer("And now?", 1, GREEDY))
    whole = conversation.template.render(conversation.messages[:-1])
    assert 0 < sum(read) < len(whole) - len("<|system|>Be brief.\n<|user|>Hi\n<|assistant|>") + 12


def test_a_turn_answers_as_if_all_was_read_anew(conversation: Conversation) -> None:
    for message in ("Hi", "And now?"):
        list(conversation.answer(message, 6, GREEDY))
    prompt = chat.encode(conversation.template.render(conversation.messages[:-1]), BytesTokenizer())
    anew = conversation.generator.tokens(prompt, 6, GREEDY)
    assert conversation.messages[-1]["content"] == BytesTokenizer().decode(anew)


def test_a_message_the_template_refuses_is_not_kept(conversation: Conversation) -> None:
    conversation.template = Template("{{ raise_exception('no') }}", BytesTokenizer())
    with pytest.raises(DataError):
        next(conversation.answer("Hi", 5, GREEDY))
    assert len(conversation.messages) == 1


def seen(conversation: Conversation, monkeypatch: pytest.MonkeyPatch) -> list[list[chat.Message]]:
    """The messages of each turn's last rendering."""
    renderings: list[list[chat.Message]] = []
    render = conversation.template.render
    monkeypatch.setattr(conversation.template, "render", lambda m: (renderings.append(list(m)), render(m))[1])
    return renderings


def test_a_long_conversation_loses_its_oldest_exchanges_and_never_the_system_prompt(
    conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    renderings = seen(conversation, monkeypatch)
    for i in range(6):
        list(conversation.answer(f"{i}" * 40, 4, GREEDY))
        assert renderings[-1][0] == {"role": "system", "content": "Be brief."}
        assert renderings[-1][-1] == {"role": "user", "content": f"{i}" * 40}
    assert conversation.n_forgotten > 0
    assert renderings[-1][1:] == conversation.messages[1 + conversation.n_forgotten : -1]


def test_an_answer_ends_where_the_window_does_and_that_is_known(conversation: Conversation) -> None:
    list(conversation.answer("Hi", 1000, GREEDY))
    assert conversation.full
    list(conversation.answer("Hi", 2, GREEDY))
    assert not conversation.full


def test_a_message_longer_than_the_window_is_refused_and_not_kept(conversation: Conversation) -> None:
    with pytest.raises(DataError, match=r"a message of 3\d\d tokens.*the window is 256"):
        list(conversation.answer("x" * 300, 4, GREEDY))
    assert len(conversation.messages) == 1


# ---------------------------------------------------------------- the command


def talk(monkeypatch: pytest.MonkeyPatch, lines: str, *arguments: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    return main.run(["chat", *arguments, "--temperature", "0", "-n", "4", "--threads", "1"])


def test_each_line_of_piped_input_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = graph(tmp_path / "g.bin")
    assert talk(monkeypatch, "Hi\n\nAnd now?\n", str(path), "--system", "Be brief.") == 0
    runtime = gg.Runtime(path, threads=1)
    expected = Conversation(Generator(runtime, BytesTokenizer()), Template(CHATML, BytesTokenizer()), "Be brief.")
    answers = ["".join(expected.answer(message, 4, GREEDY)) for message in ("Hi", "And now?")]
    assert capsys.readouterr().out == "".join(f"{answer}\n" for answer in answers)


def test_a_model_without_template_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert talk(monkeypatch, "Hi\n", str(graph(tmp_path / "g.bin", None))) == 1
    assert "no chat template; give one with --template FILE" in capsys.readouterr().err


def test_ctrl_c_stops_the_answer_and_not_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, choose, drawn = graph(tmp_path / "g.bin"), choice.choose, [0]

    def interrupted(*arguments: Any) -> int:
        drawn[0] += 1
        if drawn[0] == 2:
            raise KeyboardInterrupt
        return choose(*arguments)

    monkeypatch.setattr("ggmlgraph.generation.generate.choose", interrupted)
    assert talk(monkeypatch, "Hi\nAnd now?\n", str(path)) == 0
    assert capsys.readouterr().out.count("\n") >= 2
    assert drawn[0] == 6


def test_a_template_file_replaces_the_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.jinja").write_text("{{ raise_exception('mine') }}", encoding="utf-8")
    assert talk(monkeypatch, "Hi\n", str(graph(tmp_path / "g.bin")), "--template", str(tmp_path / "t.jinja")) == 1
    assert "chat template: mine" in capsys.readouterr().err


def test_what_is_forgotten_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "".join(f"{'word ' * 8}{i}\n" for i in range(5))
    assert talk(monkeypatch, lines, str(graph(tmp_path / "g.bin"))) == 0
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "the window is full: the model no longer sees the first 2 messages"
