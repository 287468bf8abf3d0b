"""A run's numbers as other programs read them: all of them, and after a resume none twice."""

from __future__ import annotations

import csv
import shutil
import sys
from pathlib import Path

import pytest
from test_report import line, make_run

import ggmlgraph as gg
from ggmlgraph.cli.main import run
from ggmlgraph.models import llama
from ggmlgraph.tokenizers.plain import BytesTokenizer
from ggmlgraph.training.metrics import read


def test_a_table_has_a_line_a_step_and_every_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run")
    assert run(["metrics", str(folder), "--csv", str(tmp_path / "run.csv")]) == 0
    with (tmp_path / "run.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 31))
    for row, (_, metrics) in zip(rows, read(folder / "metrics.jsonl"), strict=True):
        assert float(row["loss"]) == metrics.loss
        assert row["val_loss"] == ("" if metrics.val_loss is None else str(metrics.val_loss))
        assert bool(row["updates/blk.2"]) == bool(metrics.layers)
    capsys.readouterr()
    assert run(["metrics", str(folder), "--csv", "-"]) == 0
    assert capsys.readouterr().out == (tmp_path / "run.csv").read_text()


def test_a_table_of_a_run_that_goes_on_ends_with_the_last_whole_line(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run") / "metrics.jsonl"
    path.write_text(path.read_text() + line(31)[:20])
    assert run(["metrics", str(path.parent), "--csv", str(tmp_path / "t.csv")]) == 0
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 31


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["no", "--csv", "x.csv"], "no metrics.jsonl"),
        (["run"], "say what to write"),
        (["run", "--trackio", "p"], "pip install trackio"),
    ],
)
def test_what_cannot_be_written_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    what: str,
) -> None:
    make_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "trackio", None)
    assert run(["metrics", *arguments]) == 2
    error = capsys.readouterr().err
    assert what in error
    assert error.count("\n") == 1


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """By name and step what TensorBoard would show: of what was written before a restart, what is not taken back."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("events*"), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")  # a length, its check sum, the event, its check sum
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            if event.HasField("session_log"):
                found = {k: {step: v for step, v in each.items() if step < event.step} for k, each in found.items()}
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_tensorboard_has_every_number_once_also_after_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="want: tensorboardX is not installed")
    config, folder = llama.Config(n_embd=16, n_head=2, n_layer=1, n_ff=24, n_vocab=256), tmp_path / "run"
    gg.trace(llama.loss, config, batch=2, ctx=8).save(tmp_path / "g.bin", tokenizer=BytesTokenizer().to_bytes())
    options = ["train", str(tmp_path / "g.bin"), "--data", "builtin:sine", "--predict", "0", "-o", str(folder)]
    more = ["--steps", "9", "--save-every", "4", "--layers-every", "3", "--eval-every", "3"]
    assert run([*options, *more, "--tensorboard"]) == 0
    shutil.rmtree(folder / "step_000009")  # as after a loss of power: the run goes on from step 8
    assert run([*options, "--steps", "12", "--resume", "auto"]) == 0
    assert run(["metrics", str(tmp_path / "run"), "--tensorboard", str(tmp_path / "again")]) == 0
    live, again = scalars(tmp_path / "run/tensorboard"), scalars(tmp_path / "again")
    assert live == again
    assert sorted(live["loss"]) == list(range(1, 13))
    assert sorted(live["weights/blk.0"]) == [3, 6, 9, 12]
    for _, metrics in read(tmp_path / "run/metrics.jsonl"):
        assert live["loss"][metrics.step] == pytest.approx(metrics.loss)
