"""matmul precision bf16 on every ISA level: each product against float64 on operands that were rounded before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opcheck import EPS32, as_float64, assert_within, build, written_operands
from reference import REFERENCE, SAMPLES, Operand, Sample

import ggmlgraph as gg
from ggmlgraph.cli import main
from ggmlgraph.core.levels import isa_levels
from ggmlgraph.data.corpus import SINE_ALPHABET
from ggmlgraph.errors import UsageError
from ggmlgraph.execution import checkpoint
from ggmlgraph.models import baby_llama
from ggmlgraph.tokenizers.plain import CharsTokenizer

LEVELS = isa_levels()


def bf16(values: Any) -> Any:
    """Each number's nearest with 8 significant bits, ties to even."""
    mantissa, exponent = np.frexp(np.asarray(values, np.float64))
    return np.ldexp(np.rint(np.ldexp(mantissa, 8)), exponent - 8)


def products(op: str, *sizes: tuple[int, int, int]) -> list[Sample]:
    """The op on operands that make n_rows x n_cols results, each a sum of n_inner."""
    found = []
    for n_rows, n_cols, n_inner in sizes:
        shapes = {
            "mul_mat": ((n_cols, n_inner), (n_rows, n_inner)),
            "mul_mat_back": ((n_inner, n_rows), (n_inner, n_cols)),
            "out_prod": ((n_inner, n_cols), (n_inner, n_rows)),
        }[op]
        shape = (n_rows, n_cols) if op == "mul_mat_back" else None
        found.append(Sample(tuple(Operand(s) for s in shapes), shape=shape, op=op))
    return found


LONG = [(9, 17, 257), (17, 33, 515), (65, 40, 1025), (14, 32, 511), (200, 5, 3), (1, 31, 600), (3, 64, 129)]
CASES = [s for op in ("mul_mat", "mul_mat_back", "out_prod") for s in (*SAMPLES[op], *products(op, *LONG))]
LOSSES = SAMPLES["linear_cross_entropy"]


def run(sample: Sample, isa: str, threads: int) -> tuple[Any, list[Any]]:
    """The result, and the operands it wrote."""
    call = build(sample, sample.arrays())
    program = call.program(isa, threads, "bf16")
    program.run()
    return call.result(program), [call.result(program, call.operands[k]) for k in written_operands(sample)]


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("sample", CASES, ids=str)
def test_products_are_exact_for_rounded_operands(sample: Sample, isa: str) -> None:
    rounded = [bf16(v) for v in sample.arrays()]
    expected = REFERENCE[sample.op](*rounded, **sample.keywords())
    magnitudes = REFERENCE[sample.op](*map(abs, rounded), **sample.keywords())
    terms = max(rounded[0].shape + rounded[1].shape)
    assert_within(run(sample, isa, threads=2)[0], expected, 2.0 * np.sqrt(terms) * EPS32 * magnitudes + 1e-37)


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("sample", LOSSES, ids=str)
def test_the_fused_loss_is_that_of_rounded_operands(sample: Sample, isa: str) -> None:
    values = as_float64(sample.arrays())
    values[:2] = [bf16(v) for v in values[:2]]
    expected = np.asarray(REFERENCE[sample.op](*values, **sample.keywords()))
    found, written = run(sample, isa, threads=2)
    assert_within(found, expected, 1e-5 * np.abs(expected) + 2e-6)
    if not written:
        return
    w, x = values[0], values[1].reshape(-1, values[1].shape[-1])
    slopes = REFERENCE["cross_entropy_back"](
        np.full(1, sample.params.get("scale", 1.0)), x @ w.T, *(v.reshape(-1) for v in values[2:4])
    )
    slopes = bf16(slopes)  # the same numbers but for a few that lie between two, and were rounded to the other
    for actual, a, b in zip(written, (slopes.T, slopes), (x, w), strict=True):
        limit = 3 * 2**-7 * np.abs(a).max() * np.abs(b).max() + 1e-5 * (np.abs(a) @ np.abs(b))
        assert_within(actual, a @ b, limit)


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("sample", [*CASES, *LOSSES], ids=str)
def test_result_is_the_same_for_any_number_of_threads(sample: Sample, isa: str) -> None:
    results = [run(sample, isa, threads) for threads in (1, 2, 3, 8)]
    assert len({b"".join(array.tobytes() for array in (y, *written)) for y, written in results}) == 1


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("n_rows", [3, 20])  # a few are not packed
def test_rounding_is_to_nearest_even_and_keeps_what_is_not_finite(isa: str, n_rows: int) -> None:
    ulp = 2.0**-7
    numbers = [1 + ulp / 2, 1 + 3 * ulp / 2, 1 + ulp / 2 + 2**-20, -1 - ulp / 2, 3.4e38, np.inf, -np.inf]
    w = np.array([[x] for x in numbers] + [[0]], np.float32)
    w[-1].view(np.uint32)[...] = 0x7F800001  # a NaN of which the upper half alone is infinity
    x = np.ones((n_rows, 1), np.float32)
    sample = Sample((Operand(w.shape), Operand(x.shape)), op="mul_mat")
    call = build(sample, [w, x])
    program = call.program(isa, 1, "bf16")
    program.run()
    expected = [1, 1 + 2 * ulp, 1 + ulp, -1, np.inf, np.inf, -np.inf, np.nan]
    np.testing.assert_array_equal(call.result(program).reshape(n_rows, -1), [expected] * n_rows)


# ---------------------------------------------------------------- whole models


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "baby.bin"
    tokenizer = CharsTokenizer(SINE_ALPHABET).to_bytes()
    trace = gg.trace(baby_llama.loss, baby_llama.Config(n_embd=16, n_head=2, n_ff=16), batch=2, ctx=16)
    trace.save(path, tokenizer=tokenizer, corpus="builtin:sine")
    return path


def losses(graph: Path, **options: Any) -> list[float]:
    windows = np.random.default_rng(0).integers(0, 8, (2, 17), np.int32)
    with gg.Runtime(graph, threads=1, **options) as rt:
        return [rt.step((windows[:, :-1], windows[:, 1:]), lr=1e-2).loss for _ in range(10)]


@pytest.mark.parametrize("isa", LEVELS)
def test_a_model_learns_in_bf16_nearly_as_in_float32(graph: Path, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGMLGRAPH_ISA", isa)
    exact, rounded = losses(graph), losses(graph, matmul_precision="bf16")
    np.testing.assert_allclose(rounded, exact, rtol=0.01)
    assert rounded != exact


def test_another_context_keeps_the_precision(graph: Path) -> None:
    with gg.Runtime(graph, matmul_precision="bf16") as rt:
        assert rt.at(batch=1).settings.matmul_precision == "bf16"


def test_an_unknown_precision_is_refused(graph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="matmul precision 'fp16' is not one of float32, bf16"):
        gg.Runtime(graph, matmul_precision="fp16")
    assert main.run(["train", str(graph), "--matmul-precision", "fp16"]) == 2
    error = capsys.readouterr().err
    assert "'fp16' is not one of 'float32', 'bf16'" in error
    assert error.count("\n") == 1


def test_a_resumed_bf16_run_is_the_uninterrupted_one(graph: Path, tmp_path: Path) -> None:
    common = [str(graph), "--batch", "2", "--ctx", "16", "--save-every", "5", "--predict", "0", "--warmup", "0"]
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    assert main.run(["train", *common, "-o", one, "--steps", "10", "--matmul-precision", "bf16"]) == 0
    assert main.run(["train", *common, "-o", two, "--resume", f"{one}/step_000005"]) == 0
    for name in (checkpoint.WEIGHTS, checkpoint.OPTIMIZER):
        first, second = (Path(run, "step_000010", name) for run in (one, two))
        assert first.read_bytes() == second.read_bytes()
    assert '"matmul_precision": "bf16"' in (tmp_path / "two" / "config.json").read_text()


def test_sums_are_not_rounded() -> None:
    sample = SAMPLES["add"][0]
    call = build(sample, sample.arrays())
    results = []
    for precision in ("float32", "bf16"):
        program = call.program(LEVELS[0], 1, precision)
        program.run()
        results.append(call.result(program).tobytes())
    assert results[0] == results[1]
