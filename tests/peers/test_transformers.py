"""Checkpoints that transformers writes, of every architecture: its logits, its loss and its gradients.

Tiny random models are saved by transformers and converted; skipped where torch and transformers are not installed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import REAL

from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.generation.generate import Generator, open_model
from ggmlgraph.generation.sampling import Sampling
from ggmlgraph.interchange import checkpoints, convert
from ggmlgraph.interchange.tokenizer import load_tokenizer

torch = pytest.importorskip("torch", reason="for want of torch")
transformers = pytest.importorskip("transformers", reason="for want of transformers")

BATCH, CTX, N_VOCAB = 2, 12, 67
LLAMA = {
    "vocab_size": N_VOCAB, "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2,
    "num_hidden_layers": 2, "intermediate_size": 80, "max_position_embeddings": 64,
}  # fmt: skip
ROPE = {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}
GPT_NEOX = {
    "vocab_size": N_VOCAB, "hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 2,
    "intermediate_size": 80, "max_position_embeddings": 64,
}  # fmt: skip
GPT2 = {"vocab_size": N_VOCAB, "n_embd": 48, "n_head": 6, "n_layer": 2, "n_positions": 64}
PARTIAL = {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default", "partial_rotary_factor": 0.5}}
SCALED = {"rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_parameters": {"rope_theta": 500.0, "rope_type": "linear", "factor": 4.0}}
YARN = {"rope_parameters": SCALED | {"rope_type": "yarn", "beta_fast": 4.0, "beta_slow": 0.5}}
LLAMA3 = {"rope_parameters": SCALED | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}}
SLIDING = {"use_sliding_window": True, "sliding_window": 5}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", LLAMA | ROPE),
    "llama, tied": ("Llama", LLAMA | {"tie_word_embeddings": True}),
    "llama, every head its own key": ("Llama", LLAMA | {"num_key_value_heads": 6}),
    "llama, heads of another size": ("Llama", LLAMA | {"head_dim": 20}),
    "llama, linear": ("Llama", LLAMA | LINEAR),
    "llama, yarn": ("Llama", LLAMA | YARN),
    "llama, llama3": ("Llama", LLAMA | LLAMA3 | {"head_dim": 20}),
    "mistral": ("Mistral", LLAMA | ROPE | {"sliding_window": 16}),
    "mistral, a window shorter than the text": ("Mistral", LLAMA | ROPE | {"sliding_window": 5}),
    "llama, biases": ("Llama", LLAMA | {"attention_bias": True, "mlp_bias": True}),
    "qwen3, biases": ("Qwen3", LLAMA | {"head_dim": 20, "attention_bias": True}),
    "gpt2, exact": ("GPT2", GPT2 | {"activation_function": "gelu"}),
    "gpt_neox, tied, by tanh": ("GPTNeoX", GPT_NEOX | {"tie_word_embeddings": True, "hidden_act": "gelu_new"}),
    "gpt_neox without biases": ("GPTNeoX", GPT_NEOX | {"attention_bias": False}),
    "mistral without window": ("Mistral", LLAMA | {"sliding_window": None, "head_dim": 10}),
    "mixtral": ("Mixtral", LLAMA | ROPE | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral of one expert in three": ("Mixtral", LLAMA | {"num_local_experts": 3, "num_experts_per_tok": 1}),
    "qwen2": ("Qwen2", LLAMA | ROPE),
    "qwen2, windows after the first layer": ("Qwen2", LLAMA | SLIDING | {"max_window_layers": 1}),
    "qwen2, no layer with the window": ("Qwen2", LLAMA | SLIDING | {"max_window_layers": 2}),
    "qwen3, windows": ("Qwen3", LLAMA | SLIDING | {"head_dim": 8, "max_window_layers": 0}),
    "mixtral, a window": ("Mixtral", LLAMA | {"num_local_experts": 4, "sliding_window": 5}),
    "phi, tied": ("Phi", LLAMA | {"tie_word_embeddings": True}),
    "qwen2, tied": ("Qwen2", LLAMA | {"tie_word_embeddings": True}),
    "qwen2, yarn": ("Qwen2", LLAMA | {"rope_parameters": SCALED | {"rope_type": "yarn"}}),
    "qwen2, yarn of a magnitude": (
        "Qwen2",
        LLAMA | {"rope_parameters": YARN["rope_parameters"] | {"attention_factor": 0.9}},
    ),
    "qwen2, llama3": ("Qwen2", LLAMA | LLAMA3),
    "qwen3": ("Qwen3", LLAMA | ROPE | {"head_dim": 20}),
    "qwen3, tied": ("Qwen3", LLAMA | {"head_dim": 8, "tie_word_embeddings": True}),
    "gemma": ("Gemma", LLAMA | ROPE | {"head_dim": 20, "num_key_value_heads": 1, "pad_token_id": None}),
    "phi": ("Phi", LLAMA | PARTIAL),
    "phi, every head its own key": ("Phi", LLAMA | {"num_key_value_heads": 6}),
    "gpt2": ("GPT2", GPT2),
    "gpt2, untied": ("GPT2", GPT2 | {"tie_word_embeddings": False, "n_inner": 80}),
    "gpt_neox": ("GPTNeoX", GPT_NEOX | PARTIAL),
    "gpt_neox, yarn": (
        "GPTNeoX",
        GPT_NEOX | {"rope_parameters": YARN["rope_parameters"] | {"partial_rotary_factor": 0.5}},
    ),
    "gpt_neox, sequential": ("GPTNeoX", GPT_NEOX | {"use_parallel_residual": False}),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    """A model of transformers with random weights, large enough to matter."""
    name, sizes = MODELS[request.param]
    torch.manual_seed(0)
    built = getattr(transformers, f"{name}LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM")(
        getattr(transformers, f"{name}Config")(**sizes, initializer_range=0.15, attn_implementation="eager")
    )
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)  # gains and biases are not ones and zeros
    return built.eval()


def tokens() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    ids = np.random.default_rng(0).integers(0, N_VOCAB, (BATCH, CTX + 1)).astype(np.int32)
    return ids[:, :-1], ids[:, 1:]


def converted(folder: Path, out: Path) -> tuple[checkpoints.ModelSource, Path]:
    source = checkpoints.find(folder)
    convert.convert(source, out, batch=BATCH, ctx=CTX, tokenizer=None)
    return source, out


def gradients_of(model: Any) -> dict[str, Any]:
    """By the names that the parameters have in files, where two are others than in memory."""
    found = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad.numpy()
        layer, experts, kind = name.partition(".mlp.experts.")
        stored = f"{layer}.block_sparse_moe.experts.{{e}}"
        if kind == "gate_up_proj":
            found[f"{stored}.w1.weight"], found[f"{stored}.w3.weight"] = np.split(gradient, 2, axis=1)
        elif experts:
            found[f"{stored}.w2.weight"] = gradient
        else:
            name = name.replace("mlp.gate.", "block_sparse_moe.gate.")
            found["embed_out.weight" if name == "lm_head.weight" and "GPTNeoX" in type(model).__name__ else name] = (
                gradient
            )
    return found


def as_here(theirs: dict[str, Any], name: str, source: checkpoints.ModelSource) -> Any:
    """An array of theirs as that of our parameter."""
    array = theirs[source.format.theirs(name)]
    if source.format.is_transposed(name):
        array = array.T
    order = source.format.row_order(name)
    return array if order is None else array[order.index(len(array), source.config)]


@pytest.fixture
def folder(model: Any, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def test_logits_are_those_of_transformers(model: Any, folder: Path, tmp_path: Path) -> None:
    x, _ = tokens()
    with torch.no_grad():
        wanted = model(torch.tensor(x.astype(np.int64))).logits.numpy()
    _, graph = converted(folder, tmp_path / "graph.bin")
    with Runtime(graph, threads=1) as runtime:
        found = runtime.forward("logits", tokens=x)[0].reshape(wanted.shape)
    assert np.abs(found - wanted).max() < 1e-5  # both have rounding errors of some 3e-6
    assert np.abs(wanted).max() > 0.5


def test_loss_and_every_gradient_are_those_of_transformers(model: Any, folder: Path, tmp_path: Path) -> None:
    x, y = tokens()
    model.zero_grad()
    logits = model(torch.tensor(x.astype(np.int64))).logits
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, N_VOCAB), torch.tensor(y.astype(np.int64)).reshape(-1))
    loss.backward()
    source, graph = converted(folder, tmp_path / "graph.bin")
    gradients = gradients_of(model)
    with Runtime(graph, threads=1) as runtime:
        assert runtime.backward((x, y)) == pytest.approx(loss.item(), abs=1e-4)
        for name in runtime.params:
            wanted = as_here(gradients, name, source)
            found = runtime.gradient(name)
            scale = np.linalg.norm(wanted)
            assert np.linalg.norm(found - wanted) <= 1e-3 * scale + 1e-6, name


def spellings(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The configuration as transformers 5 writes it, and as transformers 4 did."""
    yield config
    rope = config.get("rope_parameters")
    old = {key: value for key, value in config.items() if key != "rope_parameters"}
    if rope:
        scaling = {key.replace("rope_type", "type"): value for key, value in rope.items() if key != "rope_theta"}
        scaling = {} if scaling["type"] == "default" else {"rope_scaling": scaling}
        old |= {"rope_theta": rope["rope_theta"], "rotary_emb_base": rope["rope_theta"], "rope_scaling": None} | scaling
        share = rope.get("partial_rotary_factor")
        old |= {"partial_rotary_factor": share, "rotary_pct": share} if share else {}
    yield old


def test_both_spellings_of_the_configuration_are_the_same_model(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    found = []
    for spelling in spellings(config):
        (folder / "config.json").write_text(json.dumps(spelling))
        found.append(checkpoints.find(folder).config)
    assert found[0] == found[1]


def test_parameters_are_in_the_order_of_the_model(model: Any, folder: Path) -> None:
    known = checkpoints.find(folder).format
    if not known.order:
        pytest.skip(f"no such case: the order of {known.id} is not known: moments of it are refused")
    head = known.theirs("output.weight").rpartition(".")[0]
    names = [name.replace("lm_head", head) for name, _ in model.named_parameters()]
    assert list(known.in_order(dict.fromkeys(sorted(names)), model.config.num_hidden_layers)) == names


# ---------------------------------------------------------------- trained models

STORIES, NEOX = REAL / "stories260K", REAL / "gptneox-shakespeare"
N_GREEDY = 200
PROMPTS = {
    STORIES / "hf": (STORIES / "tok512.model", ("Once upon a time", "Tom had a dog", "The sun was hot. Lily and")),
    NEOX / "sharded": (NEOX / "tokenizer.json", ("ROMEO:", "To be, or not to be", "First Citizen:\nWhat")),
}


@pytest.mark.parametrize("folder", PROMPTS, ids=lambda folder: folder.parent.name)
def test_greedy_text_is_that_of_transformers_for_200_tokens(folder: Path, tmp_path: Path) -> None:
    if not folder.exists():
        pytest.skip(f"for want of {folder}")
    file, prompts = PROMPTS[folder]
    tokenizer = load_tokenizer(file)
    convert.convert(checkpoints.find(folder), tmp_path / "graph.bin", batch=1, ctx=256, tokenizer=tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    runtime, _ = open_model(tmp_path / "graph.bin", threads=1, ctx=256)
    with runtime:
        generator = Generator(runtime, tokenizer)
        for prompt in prompts:
            ids = generator.ids(prompt)
            found = [int(token) for token in generator.tokens(ids, N_GREEDY, Sampling(temperature=0))]
            asked = torch.tensor(ids[None].astype(np.int64))
            config = transformers.GenerationConfig(max_new_tokens=N_GREEDY, do_sample=False, pad_token_id=0)
            wanted = theirs.generate(asked, attention_mask=torch.ones_like(asked), generation_config=config)
            assert found == wanted[0, len(ids) :].tolist()[: len(found)], prompt
            assert len(found) == N_GREEDY or tokenizer.eos_id in wanted[0].tolist()


def test_weights_rounded_to_bf16_give_the_logits_of_transformers_with_these_weights(tmp_path: Path) -> None:
    path = STORIES / "hf" / "pytorch_model.bf16.bin"
    if not path.exists():
        pytest.skip(f"for want of {path}")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(STORIES / "hf", dtype=torch.float32)
    rounded = {name: value.float() for name, value in torch.load(path, weights_only=True).items()}
    theirs.load_state_dict(rounded, strict=False)
    theirs.tie_weights()
    ids = np.load(STORIES / "ref_logits_transformers.npz")["ids"].astype(np.int32)
    with torch.no_grad():
        wanted = theirs(torch.tensor(ids[None].astype(np.int64))).logits.numpy()
    convert.convert(checkpoints.find(path), tmp_path / "graph.bin", batch=1, ctx=len(ids), tokenizer=None)
    with Runtime(tmp_path / "graph.bin", threads=1) as runtime:
        found = runtime.forward("logits", tokens=ids[None])[0].reshape(wanted.shape)
    assert np.abs(found - wanted).max() < 1e-4
