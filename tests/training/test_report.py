"""The page of a run: what it shows, that it is whole in itself, and that nothing in a run's files leaves its text."""

from __future__ import annotations

import http.client
import json
import re
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggmlgraph.cli.main import run as command
from ggmlgraph.errors import FormatError, UsageError
from ggmlgraph.training.events import EventsFile, read
from ggmlgraph.training.report import buckets, charts, history
from ggmlgraph.training.report.page import page
from ggmlgraph.training.report.server import Server
from ggmlgraph.training.report.told import differences, told

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[31m"


def line(step: int, **more: Any) -> str:
    fields = {"step": step, "tokens": 64 * step, "loss": 4.0 / step, "lr": 1e-3, "grad_norm": 1.0}
    fields |= {"tokens_per_s": 100.0, "elapsed_s": 0.5 * step}
    return json.dumps(fields | more, separators=(",", ":")) + "\n"


def seen(step: int, name: str) -> dict[str, Any]:
    """What a line has in addition where layers and validation were looked at."""
    layers = {f"blk.{i}": [0.02, 0.1 / step, 1e-3 * (i + 1)] for i in range(3)} | {name or "output": [0.02, None, None]}
    return {"val_loss": 5.0 / step, "val_bits_per_byte": 2.0 / step, "memory": 1 << 28, "layers": layers}


def make_run(folder: Path, n: int = 30, text: str = "", **config: Any) -> Path:
    folder.mkdir()
    lines = [line(i, **(seen(i, text) if i % 10 == 0 else {})) for i in range(1, n + 1)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    (folder / "config.json").write_text(json.dumps({"steps": n, "lr": 1e-3, "prompt": text or None} | config))
    facts = {"command": f"ggmlgraph train {text}", "threads": 2, "flops_per_token": 1e6, "peak_flops": 1e9}
    tokens = [[text or "one", None], [" two", 7.9], [text or " ", 0.0]]
    events = [
        {"kind": "start", "step": 0, "time": 1.8e9, "facts": facts},
        {"kind": "checkpoint", "step": 10, "time": 1.8e9 + 5},
        {"kind": "skip", "step": 13, "time": 1.8e9 + 6, "text": text or "not finite"},
        {"kind": "resume", "step": 15, "time": 1.8e9 + 99, "facts": facts},
        {"kind": "sample", "step": 20, "time": 1.8e9 + 100, "text": text or "once upon a time"},
        {"kind": "sample", "step": 30, "time": 1.8e9 + 200, "text": "one two", "facts": {"tokens": tokens}},
        {"kind": "phase", "step": 5, "time": 1.8e9 + 2, "text": text or "cosine"},
        {"kind": "spike", "step": 22, "time": 1.8e9 + 101, "text": text or "loss 9.1, usually 2.3"},
        {"kind": "rollback", "step": 24, "time": 1.8e9 + 102, "text": text or "to step 20"},
    ]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


class Elements(HTMLParser):
    """The elements of a page, and the attributes that run scripts or fetch something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.active: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.active += [name for name, _ in attrs if name.startswith("on") or name in ("src", "href")]


def test_events_stand_at_their_steps_on_the_curves(tmp_path: Path) -> None:
    text = page([told(make_run(tmp_path / "run"))])
    happened = {"phase": 5, "checkpoint": 10, "skip": 13, "resume": 15, "spike": 22, "rollback": 24}
    for kind, step in happened.items():
        marks = re.findall(rf'"mark {kind}"><title>{kind} at step {step}[^<]*</title>\s*<path d="M([\d.]+) ', text)
        assert len(marks) == 8  # all charts begin where the run does
        assert all(float(x) == pytest.approx(62 + (step - 1) / 29 * (640 - 62 - 14), abs=0.1) for x in marks)
        assert f'<span class="mark {kind}"><b>' in text  # and what its letter means


def test_the_first_view_has_every_curve_without_the_script(tmp_path: Path) -> None:
    text = re.sub(r"<script>.*?</script>", "", page([told(make_run(tmp_path / "run"))]), flags=re.DOTALL)
    titles = re.findall(r"<figcaption>(.*?)</figcaption>\s*<svg", text)
    assert len(titles) == 8
    assert text.count('class="mean"') == 9  # the validation loss with the loss
    assert text.count('class="chart heat"') == 3


def test_nothing_in_a_run_leaves_its_text(tmp_path: Path) -> None:
    text = page([told(make_run(tmp_path / "run", text=HOSTILE))])
    found = Elements(text)
    assert found.tags.count("script") == 2  # the numbers and ours
    assert "img" not in found.tags
    assert not found.active
    assert "\x1b" not in text
    assert "&lt;script&gt;" in text


def test_a_page_asks_for_nothing(tmp_path: Path) -> None:
    text = page([told(make_run(tmp_path / "run"))])
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", text.replace("http://www.w3.org/2000/svg", ""))
    assert "default-src &#39;none&#39;" in text
    assert "connect-src" not in text


def test_a_million_steps_weigh_less_than_2_mb(tmp_path: Path) -> None:
    n = 1_000_000
    steps = np.arange(1.0, n + 1)
    columns = dict.fromkeys((*history.AXES, *history.CURVES), steps)
    run = told(make_run(tmp_path / "run"))
    sizes = np.random.default_rng(0).uniform(size=(3, 100, n // 50))
    layers = history.Layers(tuple(map(str, range(100))), steps[49::50], sizes)
    big = type(run)(run.name, history.History(columns, layers), run.config, run.events)
    assert len(page([big])) < 2_000_000


def test_what_stands_out_in_a_stretch_of_steps_is_kept() -> None:
    values = np.ones(100_000)
    values[54_321], values[7] = 1000.0, np.nan
    columns = {name: np.arange(1.0, 100_001) for name in history.AXES} | dict.fromkeys(history.CURVES, values)
    curve = buckets.bucket(history.History(columns)).curves["loss"]
    assert np.nanmax(curve.most) == 1000.0
    assert np.nanmin(curve.least) == 1.0
    assert not np.isnan(curve.mean).any()


def test_options_are_shown_as_they_are_given(tmp_path: Path) -> None:
    text = page([told(make_run(tmp_path / "run", data=["a.txt", "b.txt"], betas=[0.9, 0.99], lr_of={"e*": 2}))])
    assert re.search(r"--data</th><td>a.txt b.txt</td>", text)
    assert re.search(r"--optimizer</th><td>adamw:beta2=0.99</td>", text)
    assert re.search(r"--lr-of</th><td>e\*=2(.0)?</td>", text)


def test_runs_are_compared_by_the_options_that_differ(tmp_path: Path) -> None:
    runs = [told(make_run(tmp_path / "a")), told(make_run(tmp_path / "b", lr=2e-3))]
    assert differences(runs) == {"lr": [1e-3, 2e-3]}
    assert "Options that differ" in page(runs)


def test_a_token_of_a_sample_is_shaded_by_its_loss(tmp_path: Path) -> None:
    text = page([told(make_run(tmp_path / "run"))])
    assert (
        '<pre>one<span class="token5" title="7.90 nats"> two</span><span class="token0" title="0.00 nats"> </span>'
        in text
    )


@pytest.mark.parametrize("tokens", [None, 3, [["a"]], [[1, 2.0]], [["a", "b"]], {"a": 1}])
def test_a_sample_whose_tokens_nobody_understands_is_shown_as_text(tmp_path: Path, tokens: Any) -> None:
    folder = make_run(tmp_path / "run")
    sample = {"kind": "sample", "step": 30, "time": 1.8e9, "text": "as a whole", "facts": {"tokens": tokens}}
    with (folder / "events.jsonl").open("a") as file:
        file.write(json.dumps(sample) + "\n")
    assert "<pre>as a whole</pre>" in page([told(folder)])


def test_the_shades_of_a_map_are_in_the_order_of_the_values() -> None:
    values = np.array([[1e-4, 1e-3, np.nan], [1e-2, 0.0, 1e-1]])
    shades, low, high = charts.levels(values)
    assert shades.tolist() == [[0, 3, -1], [6, -1, 9]]
    assert low < 2e-4
    assert high > 0.08
    assert (charts.levels(np.zeros((2, 2)))[0] == -1).all()


def test_a_difference_is_told_from_noise() -> None:
    rng, n = np.random.default_rng(0), 6400
    steps = np.arange(1.0, n + 1)

    def run(*losses: Any) -> history.History:
        return history.History({"step": steps, "loss": sum(losses, start=np.zeros(n))})

    noise = [rng.normal(0.0, 0.1, n) for _ in range(2)]
    noise[0][100:200] = np.nan
    same = buckets.difference(run(noise[0]), run(noise[1]), steps[::10])
    worse = buckets.difference(run(noise[0]), run(noise[1], np.full(n, 0.05)), steps[::10])
    assert ((same.least < 0) & (same.most > 0)).mean() > 0.8
    assert (worse.least > 0).mean() > 0.8
    assert np.nanmean(worse.mean) == pytest.approx(0.05, abs=0.01)
    alone = history.History({"step": steps[:1], "loss": noise[1][:1]})
    assert np.isnan(buckets.difference(run(noise[0]), alone, steps[:1]).mean).all()


@pytest.mark.parametrize(
    ("tail", "steps"),
    [("", 30), ('{"step":31,"tok', 30), (line(31), 31), (line(31, later="field"), 31), (line(31, loss=None), 31)],
)
def test_a_file_that_is_still_being_written_is_read_as_far_as_it_goes(tmp_path: Path, tail: str, steps: int) -> None:
    path = make_run(tmp_path / "run") / "metrics.jsonl"
    path.write_text(path.read_text() + tail)
    assert len(history.read(path)) == steps


@pytest.mark.parametrize("wrong", [line(30), line(3), "{}\n", "loss 3\n", "x" * 100_000, "[" * 5000 + "\n"])
def test_a_line_that_no_run_wrote_is_named(tmp_path: Path, wrong: str) -> None:
    path = make_run(tmp_path / "run") / "metrics.jsonl"
    path.write_text(path.read_text() + wrong)
    with pytest.raises(FormatError, match=r"metrics\.jsonl, line 31: "):
        history.read(path)


def test_an_event_may_name_a_file_whose_name_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventsFile(path).write("start", 0, "na\udcffme", command="train na\udcffme")
    (event,) = read(path)
    assert (event.text, event.facts["command"]) == ("na\\udcffme", "train na\\udcffme")


def test_a_run_that_has_not_trained_yet_is_a_page_too(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "metrics.jsonl").write_text("")
    assert "No step has been trained yet" in page([told(folder)])
    with pytest.raises(UsageError, match=r"no metrics\.jsonl"):
        told(tmp_path)


def test_broken_events_do_not_hide_the_others(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    path = folder / "events.jsonl"
    path.write_bytes(b'{"kind":"unheard of","step":1,"time":1}\n\xff\xff\n{"kind"\n' + path.read_bytes())
    assert len(told(folder).events) == 9


# ---------------------------------------------------------------- live


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("ggmlgraph.training.report.server.REST", 0.0)
    with Server([make_run(tmp_path / "run")], 0) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def get(server: Server, path: str, host: str = "localhost") -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request("GET", path, headers={"Host": host})
    return connection.getresponse()


def test_a_browser_is_told_when_the_run_has_gone_on(server: Server) -> None:
    news = get(server, "/news")
    metrics = server.runs[0] / "metrics.jsonl"
    assert news.fp.readline() == b"data: new\n"  # of the page as it was when the browser came
    metrics.write_text(metrics.read_text() + line(31))
    assert news.fp.readline() == b"\n"
    assert news.fp.readline() == b"data: new\n"
    assert "<dd>31 of 30</dd>" in get(server, "/").read().decode()


def test_however_many_watch_pages_are_made_at_a_bounded_rate(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggmlgraph.training.report.server.REST", 1e6)
    metrics = server.runs[0] / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + line(31))
    assert "<dd>31 of 30</dd>" in get(server, "/").read().decode()
    metrics.write_text(metrics.read_text() + line(32))
    assert "<dd>31 of 30</dd>" in get(server, "/").read().decode()


def test_only_this_machine_is_answered(server: Server) -> None:
    assert get(server, "/", host="evil.example:80").status == 403
    assert get(server, "/../../etc/passwd").status == 404
    assert get(server, "/", host=f"127.0.0.1:{server.server_port}").status == 200


def test_a_port_in_use_is_one_line(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["dash", str(server.runs[0]), "--port", str(server.server_port)]) == 2
    error = capsys.readouterr().err
    assert "Address already in use" in error
    assert error.count("\n") == 1
