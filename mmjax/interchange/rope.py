"""The options of language models for rotary positions and sliding windows, which may differ between layers."""

import math
from typing import Any

from mmjax.errors import UserError
from mmjax.interchange.rules import check_options
from mmjax.models import LinearScaling, Llama3Scaling, LongRopeScaling, Rotary, SlidingWindow, YarnScaling
from mmjax.models.rotary_scaling import RotaryScaling

LOCAL, FULL = "sliding_attention", "full_attention"


def rotary(theirs: dict[str, Any], kind: str = FULL) -> Rotary:
    """The rotary positions of the layers of a kind (Gemma 3 and ModernBERT have two kinds).

    Versions of transformers before 5 store them in "rope_theta" and "rope_scaling", later ones in "rope_parameters".

    Raises:
      UserError: a way to scale them that is not supported.
    """
    stored = theirs.get("rope_parameters") or {}
    if kind == LOCAL:
        options, base = stored.get(LOCAL) or {}, theirs.get("rope_local_base_freq")
    else:
        options, base = theirs.get("rope_scaling") or stored.get(FULL, stored), theirs.get("rope_theta")
    base = options.get("rope_theta") or base or 10_000.0
    share = options.get("partial_rotary_factor") or theirs.get("partial_rotary_factor") or 1.0
    return Rotary(base=float(base), share=share, scaling=_scaling(options, theirs))


def _scaling(options: dict[str, Any], theirs: dict[str, Any]) -> RotaryScaling | None:
    kind = options.get("rope_type", options.get("type", "default"))
    length = options.get("original_max_position_embeddings") or theirs.get("max_position_embeddings")
    if kind in ("longrope", "su") or (kind == "yarn" and theirs.get("model_type") == "phi3"):  # older names of Phi-3
        return _longrope(options, theirs)
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(factor=options["factor"])
    if kind == "llama3":
        low, high = options["low_freq_factor"], options["high_freq_factor"]
        return Llama3Scaling(factor=options["factor"], low=low, high=high, length=length)
    if kind == "yarn":
        return YarnScaling(
            factor=options["factor"],
            fast=options.get("beta_fast") or 32.0,
            slow=options.get("beta_slow") or 1.0,
            length=length,
            magnitude=_magnitude(options),
            whole=options.get("truncate", True),
        )
    raise UserError(f"cannot import rope_type={kind!r}; only 'default', 'linear', 'llama3', 'yarn' or 'longrope'")


def _longrope(options: dict[str, Any], theirs: dict[str, Any]) -> LongRopeScaling:
    """The scaling of Phi-3 with its factors for short texts.

    Raises:
      UserError: factors are missing.
    """
    if not (options.get("short_factor") and options.get("long_factor")):
        raise UserError("cannot import rope_type='longrope' without short_factor and long_factor")
    name, longest = "original_max_position_embeddings", theirs["max_position_embeddings"]
    length = theirs.get(name) or options.get(name) or longest
    return LongRopeScaling(
        factor=options.get("factor") or longest / length,
        short=tuple(map(float, options["short_factor"])),
        long=tuple(map(float, options["long_factor"])),
        length=length,
        longest=length,
        magnitude=options.get("attention_factor"),
    )


def _magnitude(options: dict[str, Any]) -> float | None:
    """The factor of queries and keys that options of YaRN state; None: it follows from the factor of the scaling."""
    by, over = options.get("mscale"), options.get("mscale_all_dim")
    if options.get("attention_factor") is None and by and over and options["factor"] > 1:
        growth = 0.1 * math.log(options["factor"])
        return (by * growth + 1.0) / (over * growth + 1.0)
    return options.get("attention_factor")


def sliding_window(theirs: dict[str, Any]) -> SlidingWindow | None:
    """The layers with a window.

    Raises:
      UserError: layers of another kind, or a window in a model that ignores it.
    """
    if theirs["model_type"] == "llama":
        check_options(theirs, sliding_window=None)
    window, depth = theirs.get("sliding_window"), theirs["num_hidden_layers"]
    if not window or not theirs.get("use_sliding_window", True):
        return None
    full = _full_layers(theirs, depth)
    if len(full) == depth:
        return None
    own = rotary(theirs, LOCAL) if theirs["model_type"] in ("gemma3_text", "modernbert") else None
    return SlidingWindow(window=window, full_layers=full, positions=own)


def _full_layers(theirs: dict[str, Any], depth: int) -> tuple[int, ...]:
    """The layers without a window, by "layer_types", or by the rules of older files."""
    kinds = theirs.get("layer_types")
    if theirs["model_type"] in ("mistral", "phi3"):
        return ()
    if kinds:
        if other := sorted(set(kinds) - {LOCAL, FULL}):
            raise UserError(f"cannot import layer_types={other[0]!r}; only {LOCAL!r} or {FULL!r}")
        return tuple(layer for layer, kind in enumerate(kinds) if kind == FULL)
    if theirs["model_type"] == "smollm3":
        return tuple(layer for layer in range(depth) if layer not in unrotated(theirs))
    if every := theirs.get("sliding_window_pattern"):
        return tuple(layer for layer in range(depth) if (layer + 1) % every == 0)
    return tuple(range(min(theirs.get("max_window_layers", 0), depth)))


def unrotated(theirs: dict[str, Any]) -> tuple[int, ...]:
    """The layers without rotary positions, in SmolLM3."""
    if theirs["model_type"] != "smollm3":
        return ()
    depth, every = theirs["num_hidden_layers"], theirs["no_rope_layer_interval"]
    has_rope = theirs.get("no_rope_layers") or [(layer + 1) % every for layer in range(depth)]
    return tuple(layer for layer, has in enumerate(has_rope) if not has)
