"""How checkpoints say that rotary positions are scaled: the fields of `rotary.RotaryScaling`, for models/names.

Hugging Face has an object of settings for each kind of scaling; GGUF has keys, and for Llama 3's kind only the tensor
that frequencies are divided by, whose values `convert` compares with those that the settings give.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ggmlgraph.errors import FormatError, UnsupportedError
from ggmlgraph.interchange.formats.stored import Stored
from ggmlgraph.interchange.naming import ABSENT, Checkpoint, Key, Value
from ggmlgraph.tracing.rotary import FIELDS, FREQ_FACTORS, KINDS, RotaryScaling

FIELD = "rope_scaling"
MAX_FACTORS = 1 << 16
LIT, LIT_RATIO = "rope_adjustments", "rope_condense_ratio"
LIT_KINDS = {
    ("factor",): "linear",
    ("factor", "high_freq_factor", "low_freq_factor", "original_max_seq_len"): "llama3",
}
LLAMA3_N_CTX, LLAMA3_FAST = 8192, 4.0  # of every published model of this kind; GGUF files do not say them


@dataclass(frozen=True)
class Kind(Value):
    """Which scaling, in words of theirs."""

    key: Key
    words: Mapping[str | bool, str]  # theirs: ours

    def of(self, checkpoint: Checkpoint) -> Any:
        word = self.key.of(checkpoint)
        if not isinstance(word, str | bool) or word not in self.words:
            raise UnsupportedError(f"{self.key} is {word!r}; known are {', '.join(map(str, self.words))}")
        return self.words[word]

    def keys(self, value: Any, config: Mapping[str, Any]) -> dict[str, Any]:
        said = self.key.keys(next((theirs for theirs, ours in self.words.items() if ours == value), ABSENT), config)
        return said if value else dict(list(said.items())[:1])

    def __str__(self) -> str:
        return str(self.key)


@dataclass(frozen=True)
class GgufKind(Kind):
    """As Kind, but a factor without a word says "linear", and the tensor of Llama 3's kind says "llama3"."""

    factor: Key
    fixed: Mapping[Key, float]  # settings that have other values in other models
    llama3: bool  # whether llama.cpp knows that kind in this architecture

    def of(self, checkpoint: Checkpoint) -> Any:
        for setting, value in self.fixed.items():
            if (found := setting.of(checkpoint)) not in (ABSENT, value):
                raise UnsupportedError(f"{setting} is {found!r}; known is {value}")
        if all(checkpoint.get(name) is ABSENT for name in self.key.names):
            return "linear" if self.factor.of(checkpoint) not in (ABSENT, 0, 1) else self._none(checkpoint)
        return super().of(checkpoint) or self._none(checkpoint)

    def _none(self, checkpoint: Checkpoint) -> str:
        return "llama3" if self.llama3 and FREQ_FACTORS in checkpoint.tensors else ""

    def keys(self, value: Any, config: Mapping[str, Any]) -> dict[str, Any]:
        return super().keys("" if value == "llama3" else value, config)


@dataclass(frozen=True)
class LitKind(Value):
    """Which scaling, as LitGPT shows it: by which settings there are."""

    def of(self, checkpoint: Checkpoint) -> Any:
        given, ratio = checkpoint.get(LIT), checkpoint.get(LIT_RATIO)
        condensed = ratio not in (ABSENT, 1)
        if given is ABSENT:
            return "linear" if condensed else ""
        names = tuple(sorted(given)) if isinstance(given, dict) else ()
        if condensed or names not in LIT_KINDS:
            known = " or ".join(", ".join(each) for each in LIT_KINDS)
            raise UnsupportedError(f"{LIT} is {given!r} and {LIT_RATIO} {ratio!r}; known is {LIT} with {known}")
        return LIT_KINDS[names]

    def __str__(self) -> str:
        return LIT


@dataclass(frozen=True)
class OfKind(Value):
    """A field that each kind of scaling has in a place of its own; `default` where a kind has none."""

    kind: Kind | LitKind
    places: Mapping[str, Value]
    default: Any

    def of(self, checkpoint: Checkpoint) -> Any:
        place = self.places.get(self.kind.of(checkpoint))
        return self.default if place is None else place.of(checkpoint)

    def keys(self, value: Any, config: Mapping[str, Any]) -> dict[str, Any]:
        place = self.places.get(config[FIELD])
        return {} if place is None else place.keys(value, config)

    def __str__(self) -> str:
        return " or ".join(dict.fromkeys(map(str, self.places.values())))


@dataclass(frozen=True)
class LargestFactor(Value):
    """The largest of the numbers that Llama 3's kind divides frequencies by: that of the slowest pairs."""

    def of(self, checkpoint: Checkpoint) -> Any:
        stored = checkpoint.tensors[FREQ_FACTORS]
        if not isinstance(stored, Stored) or len(stored.shape) != 1 or not 0 < stored.shape[0] <= MAX_FACTORS:
            raise FormatError(f"{FREQ_FACTORS} is {list(stored.shape)}, not a number for each rotated pair")
        return max(float(values.max()) for values in stored.chunks())

    def __str__(self) -> str:
        return FREQ_FACTORS


@dataclass(frozen=True)
class Magnitude(Value):
    """transformers' attention_factor, less what YaRN multiplies by itself; or DeepSeek's two settings instead."""

    def of(self, checkpoint: Checkpoint) -> Any:
        factor, given, one, other, truncate = (
            _setting(name).of(checkpoint)
            for name in ("factor", "attention_factor", "mscale", "mscale_all_dim", "truncate")
        )
        if truncate is False:
            raise UnsupportedError("rope_parameters.truncate is False: a ramp that does not begin at a whole pair")
        if not _is_number(factor) or not all(number is ABSENT or _is_number(number) for number in (given, one, other)):
            return ABSENT
        if given is not ABSENT:
            return given / _yarn(factor)
        return _yarn(factor, one) / _yarn(factor, other) / _yarn(factor) if one and other else 1.0

    def keys(self, value: Any, config: Mapping[str, Any]) -> dict[str, Any]:
        return {} if value == 1 else _setting("attention_factor").keys(value * _yarn(config["rope_factor"]), config)

    def __str__(self) -> str:
        return "rope_parameters.attention_factor"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and 0 < value < math.inf


def _yarn(factor: float, share: float = 1.0) -> float:
    """What YaRN multiplies rotated vectors by (Peng et al. 2023, section 3.4)."""
    return 1 + 0.1 * share * math.log(factor) if factor > 1 else 1.0


def _setting(name: str, *more: str, default: Any = ABSENT) -> Key:
    """A setting in the object of transformers 5 or of 4."""
    return Key((f"rope_parameters.{name}", f"rope_scaling.{name}", *more), default)


def _fields(kind: Kind | LitKind, places: Mapping[str, Mapping[str, Value]]) -> dict[str, Value]:
    """All fields. places: by field and kind of scaling."""
    return {FIELD: kind} | {
        field: OfKind(kind, places.get(field, {}), getattr(RotaryScaling, field)) for field in FIELDS if field != FIELD
    }


def huggingface() -> dict[str, Value]:
    """The fields of a config.json."""
    key = Key(("rope_parameters.rope_type", "rope_scaling.rope_type", "rope_scaling.type"), "default")
    kind = Kind(key, {"default": "", "linear": "linear", "yarn": "yarn", "llama3": "llama3"})
    n_ctx = _setting("original_max_position_embeddings", "max_position_embeddings")
    return _fields(kind, {
        "rope_factor": dict.fromkeys(KINDS, _setting("factor")),
        "rope_n_ctx_orig": dict.fromkeys(("yarn", "llama3"), n_ctx),
        "rope_beta_fast": {"yarn": _setting("beta_fast", default=32.0), "llama3": _setting("high_freq_factor")},
        "rope_beta_slow": {"yarn": _setting("beta_slow", default=1.0), "llama3": _setting("low_freq_factor")},
        "rope_attn_factor": {"yarn": Magnitude()},
    })  # fmt: skip


def gguf(prefix: str, *, llama3: bool = False) -> dict[str, Value]:
    """The fields of a GGUF file. llama3: whether llama.cpp knows that kind of scaling in this architecture."""

    def key(name: str, default: Any = ABSENT) -> Key:
        return Key((f"{prefix}.rope.scaling.{name}",), default)

    factor, n_ctx = Key((f"{prefix}.rope.scaling.factor", f"{prefix}.rope.scale_linear")), "original_context_length"
    fixed = {key("yarn_ext_factor"): 1.0, key("yarn_attn_factor"): 1.0, key("yarn_log_multiplier"): 0.0}
    kind = GgufKind(key("type"), {"none": "", "linear": "linear", "yarn": "yarn"}, factor, fixed, llama3)
    return _fields(kind, {
        "rope_factor": {"linear": factor, "yarn": factor, "llama3": LargestFactor()},
        "rope_n_ctx_orig": {"yarn": key(n_ctx), "llama3": key(n_ctx, LLAMA3_N_CTX)},
        "rope_beta_fast": {"yarn": key("yarn_beta_fast", 32.0), "llama3": key("yarn_beta_fast", LLAMA3_FAST)},
        "rope_beta_slow": dict.fromkeys(("yarn", "llama3"), key("yarn_beta_slow", 1.0)),
        "rope_attn_factor": {"yarn": key("attn_factor", 1.0)},
    })  # fmt: skip


def meta() -> dict[str, Value]:
    """The fields of a params.json, which does not always say the factor: it is 8 for Llama 3.1, 32 for 3.2."""
    kind = Kind(Key(("use_scaled_rope",), False), {False: "", True: "llama3"})
    return _fields(kind, {
        "rope_factor": {"llama3": Key(("rope_scaling_factor",))},
        "rope_n_ctx_orig": {"llama3": Key((), LLAMA3_N_CTX)},
        "rope_beta_fast": {"llama3": Key(("rope_high_freq_factor",), LLAMA3_FAST)},
    })  # fmt: skip


def litgpt() -> dict[str, Value]:
    """The fields of a model_config.yaml."""
    return _fields(LitKind(), {
        "rope_factor": {"linear": Key((f"{LIT}.factor", LIT_RATIO)), "llama3": Key((f"{LIT}.factor",))},
        "rope_n_ctx_orig": {"llama3": Key((f"{LIT}.original_max_seq_len",))},
        "rope_beta_fast": {"llama3": Key((f"{LIT}.high_freq_factor",))},
        "rope_beta_slow": {"llama3": Key((f"{LIT}.low_freq_factor",))},
    })  # fmt: skip
