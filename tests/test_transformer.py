"""Text towers: the outputs of other implementations, causality within packed rows, decoding with a cache."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import weights as w
from untrained import parameters

from mmjax.errors import UserError
from mmjax.models import (
    BlockStyle,
    DistanceBuckets,
    Learned,
    LongRopeScaling,
    MeanEmbedding,
    Rotary,
    SlidingWindow,
    TextDecoder,
    Transformer,
)
from mmjax.models.attention import attention, prefix_times
from mmjax.stream import Stream


def texts(*lengths, room=0, vocabulary=19, seed=0):
    """Texts of so many tokens in one row; the ids of a text depend on its length and the seed alone."""
    ids = np.concatenate([np.random.default_rng([seed, n]).integers(0, vocabulary, n) for n in lengths])
    segments, positions = np.repeat(np.arange(1, len(lengths) + 1), lengths), np.concatenate([*map(np.arange, lengths)])
    empty = max(room - len(ids), 0)
    return Stream(*(jnp.asarray(np.pad(x, (0, empty))[None]) for x in (ids, segments, positions)))


def initialised(model, *inputs):
    return {"params": parameters(model, *inputs)}


def same_structure(params, model, *inputs):
    ours = jax.tree.map(jnp.shape, nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *inputs))["params"])
    return ours == jax.tree.map(np.shape, params)


def both(block):
    return jax.tree.map(lambda *x: np.stack(x), block(0), block(1))


# Attention. -----------------------------------------------------------------------------------------------


def test_grouped_and_causal_attention_equal_plain_loops():
    generator = np.random.default_rng(0)
    query, key, value = (generator.normal(size=(2, heads, 7, 4)) for heads in (6, 2, 2))
    segments = np.array([[1, 1, 1, 1, 2, 2, 0], [1, 2, 2, 2, 2, 2, 2]])
    positions = np.array([[0, 1, 2, 3, 0, 1, 0], [0, 0, 1, 2, 3, 4, 5]])
    for prefix in (0, 1, 3):
        times = prefix_times(positions, prefix)
        ours = jax.jit(attention)(
            *(x.astype(np.float32) for x in (query, key, value)), segments, segments, None, times, times
        )
        for row, head, at in np.ndindex(2, 6, 7):
            seen = [
                s
                for s in range(7)
                if segments[row, s] == segments[row, at] > 0
                and (positions[row, s] <= positions[row, at] or max(positions[row, s], positions[row, at]) < prefix)
            ]
            keys, values = key[row, head // 3, seen], value[row, head // 3, seen]
            expected = scipy.special.softmax(keys @ query[row, head, at] / 2.0) @ values if seen else np.zeros(4)
            np.testing.assert_allclose(ours[row, head, at], expected, atol=1e-5)


# Other implementations. -----------------------------------------------------------------------------------


@pytest.mark.reference
def test_a_post_norm_encoder_equals_bert():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    settings = transformers.BertConfig(
        vocab_size=19,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=12,
    )
    model = transformers.BertModel(settings, add_pooling_layer=False)
    weights = w.randomised(model)

    def block(i):
        at = f"encoder.layer.{i}"
        return {
            "attention": w.attention(
                weights, f"{at}.attention", 3, "self.query", "self.key", "self.value", "output.dense"
            ),
            "attention_norm": w.norm(weights, f"{at}.attention.output.LayerNorm"),
            "mlp": w.mlp(weights, at, "intermediate.dense", "output.dense"),
            "mlp_norm": w.norm(weights, f"{at}.output.LayerNorm"),
        }

    params = {
        "embedding": {"embedding": weights["embeddings.word_embeddings.weight"]},
        # Every token is of the first type.
        "place": {
            "embedding": weights["embeddings.position_embeddings.weight"]
            + weights["embeddings.token_type_embeddings.weight"][0]
        },
        "norm": w.norm(weights, "embeddings.LayerNorm"),
        "layers": both(block),
    }
    style = BlockStyle(post_norm=True, epsilon=1e-12)
    ours = Transformer(vocabulary=19, layers=2, width=24, heads=3, mlp=40, positions=Learned(length=12), block=style)
    row = texts(12, 1, 7, 5)
    assert same_structure(params, ours, row)
    result = jax.jit(ours.apply)({"params": params}, row)
    for segment in range(1, 5):
        at = np.asarray(row.segments == segment)
        with torch.no_grad():
            theirs = model(torch.tensor(np.asarray(row.features)[at])[None]).last_hidden_state
        np.testing.assert_allclose(result.features[at], theirs[0], atol=1e-4)


def decoder_parity(ours, params, model):
    """Logits of a causal language model of transformers, and ours, packed and step by step."""
    import torch

    row = texts(12, 1, 7, 5)
    assert same_structure(params, ours, row)
    result = jax.jit(ours.apply)({"params": params}, row)
    for segment in range(1, 5):
        at = np.asarray(row.segments == segment)
        with torch.no_grad():
            theirs = model(torch.tensor(np.asarray(row.features)[at])[None]).logits
        np.testing.assert_allclose(result.features[at], theirs[0], atol=1e-4)


@pytest.mark.reference
def test_a_decoder_without_context_equals_llama():
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    settings = transformers.LlamaConfig(
        vocab_size=19,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        intermediate_size=40,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.LlamaForCausalLM(settings)
    weights = w.randomised(model)

    def block(i):
        at = f"model.layers.{i}"
        query, key, value = (w.linear(weights, f"{at}.self_attn.{part}_proj") for part in "qkv")
        return {
            "self_attention": {
                "query": w.projection([query], 6),
                "key_value": w.projection([key, value], 2),
                "out": w.output(w.linear(weights, f"{at}.self_attn.o_proj"), 6),
            },
            "self_attention_norm": w.norm(weights, f"{at}.input_layernorm"),
            "mlp": {part: w.linear(weights, f"{at}.mlp.{part}_proj") for part in ("gate", "up", "down")},
            "mlp_norm": w.norm(weights, f"{at}.post_attention_layernorm"),
        }

    params = {
        "embedding": {"embedding": weights["model.embed_tokens.weight"]},
        "layers": both(block),
        "norm": w.norm(weights, "model.norm"),
        "logits": w.linear(weights, "lm_head"),
    }
    style = BlockStyle(norm="rms", epsilon=1e-5, activation="silu", gated=True, bias=False, key_value_heads=2)
    ours = TextDecoder(
        vocabulary=19,
        layers=2,
        width=24,
        heads=6,
        mlp=40,
        cross_attention=False,
        tied=False,
        block=style,
    )
    decoder_parity(ours, params, model)


@pytest.mark.reference
def test_a_decoder_without_context_equals_gpt_2():
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    settings = transformers.GPT2Config(
        vocab_size=19, n_embd=24, n_layer=2, n_head=3, n_inner=40, n_positions=12, bos_token_id=1, eos_token_id=2
    )
    model = transformers.GPT2LMHeadModel(settings)
    weights = w.randomised(model)

    def block(i):
        at = f"transformer.h.{i}"
        joint = w.linear(weights, f"{at}.attn.c_attn", transposed=False)
        parts = zip(np.split(joint["kernel"], 3, axis=1), np.split(joint["bias"], 3), strict=True)
        layers = [{"kernel": kernel, "bias": bias} for kernel, bias in parts]
        return {
            "self_attention": {
                "qkv": w.projection(layers, 3),
                "out": w.output(w.linear(weights, f"{at}.attn.c_proj", transposed=False), 3),
            },
            "self_attention_norm": w.norm(weights, f"{at}.ln_1"),
            "mlp": {
                ours: w.linear(weights, f"{at}.mlp.{theirs}", transposed=False)
                for ours, theirs in (("up", "c_fc"), ("down", "c_proj"))
            },
            "mlp_norm": w.norm(weights, f"{at}.ln_2"),
        }

    params = {
        "embedding": {"embedding": weights["transformer.wte.weight"]},
        "place": {"embedding": weights["transformer.wpe.weight"]},
        "layers": both(block),
        "norm": w.norm(weights, "transformer.ln_f"),
    }
    style = BlockStyle(epsilon=1e-5, activation="gelu_tanh")
    ours = TextDecoder(
        vocabulary=19,
        layers=2,
        width=24,
        heads=3,
        mlp=40,
        positions=Learned(length=12),
        cross_attention=False,
        block=style,
    )
    decoder_parity(ours, params, model)


# Packing. -------------------------------------------------------------------------------------------------

SMALL = dict(vocabulary=19, layers=2, width=16, heads=4, mlp=24, block=BlockStyle(key_value_heads=2))


MODERNBERT = dict(
    sliding_window=SlidingWindow(window=3, full_layers=(0,), positions=Rotary(base=100.0)),
    embedding_norm=True,
    block=BlockStyle(norm="layer_without_bias", gated=True, bias=False),
)


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": Rotary()},
        {"positions": Learned(length=9)},
        {"positions": DistanceBuckets(buckets=8, max_distance=6)},
        MODERNBERT,
    ],
)
@pytest.mark.parametrize("causal", [False, True])
def test_a_text_gives_the_same_packed_and_alone(changes, causal):
    model = Transformer(**SMALL | changes, causal=causal)
    lengths = (4, 9, 1, 6)
    row = texts(*lengths, room=24)
    params = initialised(model, row)
    apply = jax.jit(model.apply)
    together = apply(params, row)
    for number, length in enumerate(lengths, 1):
        alone = apply(params, texts(length, room=24))
        np.testing.assert_allclose(
            together.features[together.segments == number], alone.features[alone.segments > 0], atol=1e-5
        )
    empty = row.segments == 0
    spoilt = row._replace(
        features=jnp.where(empty, 10**9, row.features), positions=jnp.where(empty, -(10**9), row.positions)
    )
    np.testing.assert_array_equal(apply(params, spoilt).features, together.features)


def test_a_causal_encoder_does_not_see_what_comes_later():
    row = texts(5, 6)
    changed = row._replace(features=row.features.at[0, 3].set(0).at[0, 8].set(0))
    for causal in (True, False):
        model = Transformer(**SMALL, causal=causal)
        params = initialised(model, row)
        apply = jax.jit(model.apply)
        same = (apply(params, row).features == apply(params, changed).features).all(-1)[0].tolist()
        assert same == ([True] * 3 + [False] * 2 + [True] * 3 + [False] * 3 if causal else [False] * 11)


def context_of(segments, width=6, seed=3):
    features = np.random.default_rng(seed).normal(size=(*np.shape(segments), width)).astype(np.float32)
    return Stream(jnp.asarray(features), jnp.asarray(segments), jnp.zeros(np.shape(segments) + (2,), int))


def test_what_stands_in_empty_positions_changes_nothing():
    model = TextDecoder(**SMALL, positions=Learned(length=6))
    row, context = texts(4, 6, room=13), context_of([[1, 1, 2, 0, 0]])
    params = initialised(model, row, context)
    spoilt_row = Stream(
        *(
            jnp.where(row.segments > 0, x, bad)
            for x, bad in ((row.features, 10**9), (row.segments, 0), (row.positions, -(10**9)))
        )
    )
    spoilt_context = context._replace(features=jnp.where(context.segments[..., None] > 0, context.features, jnp.nan))

    @jax.jit
    def run(params, row, context):
        return jax.value_and_grad(lambda p: (model.apply(p, row, context).features ** 2).sum())(params)

    for a, b in zip(
        jax.tree.leaves(run(params, row, context)),
        jax.tree.leaves(run(params, spoilt_row, spoilt_context)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    empty = spoilt_row._replace(segments=jnp.zeros_like(row.segments))
    nothing = run(params, empty, spoilt_context._replace(segments=jnp.zeros_like(context.segments)))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(nothing)), "zeros, and gradients of zero"


# Decoding. ------------------------------------------------------------------------------------------------


# What Gemma 2 and 3, Qwen3 and SmolLM3 have, in one model.
GEMMA = dict(
    sliding_window=SlidingWindow(window=3, full_layers=(1,), positions=Rotary(base=100.0)),
    unrotated=(2,),
    layers=3,
    scaled_embeddings=True,
    soft_cap=3.0,
    block=BlockStyle(norm="rms_plus_one", sandwich_norm=True, qk_norm=True, soft_cap=2.0, scale=0.3, head_width=6),
)


@pytest.mark.parametrize(
    "changes, prefix",
    [
        ({"positions": Rotary()}, 3),
        ({"positions": Learned(length=9)}, 1),
        pytest.param({"positions": Rotary()}, 1, marks=pytest.mark.slow),
        pytest.param({"positions": Learned(length=9)}, 3, marks=pytest.mark.slow),
        (GEMMA, None),
    ],
)
def test_step_by_step_equals_all_at_once(changes, prefix):
    """Two rows of one or two examples each, of unequal length: those that have ended give empty tokens."""
    model = TextDecoder(**SMALL | {"block": BlockStyle(head_width=6, key_value_heads=2)} | changes)
    rows = [texts(9, 5, room=14), texts(7, room=14)]
    row = Stream(*(jnp.concatenate(x) for x in zip(*rows, strict=True)))
    context = context_of([[1, 1, 1, 2, 0], [1, 1, 0, 0, 0]])
    params = initialised(model, row, context)
    at_once = jax.device_get(jax.jit(lambda p: model.apply(p, row, context, prefix))(params))

    def tokens(start, stop):
        """Tokens start..stop-1 of every example; empty where it has fewer."""
        found = [
            np.flatnonzero((row.segments[r] == s) & (row.positions[r] == t))
            for r in range(2)
            for s in (1, 2)
            for t in range(start, stop)
        ]
        index = np.array([f[0] if len(f) else -1 for f in found]).reshape(2, -1)
        ids, segments, places = (np.take_along_axis(np.asarray(x), index, axis=1) for x in row)
        return Stream(*map(jnp.asarray, (ids, np.where(index < 0, 0, segments), places))), index

    given = prefix or 2
    first, index = tokens(0, given)
    begin = jax.jit(lambda p, t, c: model.apply(p, t, 18, c, prefix, method="begin"))
    step = jax.jit(lambda p, t, c: model.apply(p, t, c, method="step"))
    logits, cache = begin(params, first, context)
    steps = [(jax.device_get(logits), index)]
    for now in range(given, 9):
        token, index = tokens(now, now + 1)
        logits, cache = step(params, token, cache)
        steps.append((jax.device_get(logits), index))
    compared = 0
    for logits, index in steps:
        for r, n in zip(*np.nonzero(index >= 0), strict=True):
            np.testing.assert_allclose(logits.features[r, n], at_once.features[r, index[r, n]], atol=1e-4)
            compared += 1
    assert compared == 9 + 5 + 7 and int(cache.used) == 18


def test_a_prefix_sees_itself_whole_and_not_what_follows():
    model = TextDecoder(**SMALL, cross_attention=False)
    row = texts(6, 5)
    params = initialised(model, row)
    # The first text has a prefix of 3 tokens, the second of 2.
    prefix = jnp.where(row.segments == 1, 3, 2)
    apply = jax.jit(lambda row: model.apply(params, row, None, prefix).features)

    def sees(token):
        changed = row._replace(features=row.features.at[0, token].set((row.features[0, token] + 1) % 19))
        return np.flatnonzero((apply(row) != apply(changed)).any(-1)[0]).tolist()

    assert sees(2) == [0, 1, 2, 3, 4, 5] and sees(3) == [3, 4, 5]
    assert sees(7) == [6, 7, 8, 9, 10] and sees(8) == [8, 9, 10]


def seen_from(model, row):
    """[T, T] bool: whether the token of a column changes the logits of the token of a row."""
    params, ids = initialised(model, row), np.asarray(row.features)
    apply = jax.jit(lambda ids: model.apply(params, row._replace(features=ids)).features[0])
    before, places = np.asarray(apply(ids)), np.arange(ids.shape[1])
    changed = [np.asarray(apply(np.where(places == t, (ids + 1) % 19, ids))) for t in places]
    return np.stack([(before != other).any(-1) for other in changed], axis=1)


@pytest.mark.parametrize("full_layers, bidirectional", [((), False), ((1,), False), ((), True), ((1,), True)])
def test_a_token_sees_the_window_of_each_layer(full_layers, bidirectional):
    """Through two layers with a window of 3, itself and the four tokens before it; in an encoder, four after it, too."""
    sliding = SlidingWindow(window=3, full_layers=full_layers)
    decoder = TextDecoder(**SMALL, cross_attention=False, sliding_window=sliding)
    model = Transformer(**SMALL, sliding_window=sliding) if bidirectional else decoder
    row = texts(8, 4)
    ago = np.asarray(row.positions[0])[:, None] - np.asarray(row.positions[0])
    ago = abs(ago) if bidirectional else ago
    expected = (row.segments[0][:, None] == row.segments[0]) & (ago >= 0) & (ago < (9 if full_layers else 5))
    np.testing.assert_array_equal(seen_from(model, row), expected)


def test_a_window_has_no_prefix():
    model, row = TextDecoder(**SMALL, cross_attention=False, sliding_window=SlidingWindow(window=3)), texts(8, 4)
    with pytest.raises(ValueError, match="a decoder with a sliding window has no prefix"):
        model.apply(initialised(model, row), row, None, 2)


TWO = (1.0, 2.0)  # factors of the frequencies of heads of four features


def test_without_rotation_only_the_order_of_tokens_counts():
    row = texts(7)
    apart = row._replace(positions=3 * row.positions)
    for unrotated, equal in (((0, 1), True), ((1,), False)):
        model = TextDecoder(**SMALL, cross_attention=False, unrotated=unrotated)
        params = initialised(model, row)
        first, second = (jax.jit(model.apply)(params, x).features for x in (row, apart))
        assert np.allclose(first, second, atol=1e-6) == equal


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"unrotated": (0, 2)}, "d.unrotated names layer 2, but layers are numbered 0 to 1"),
        ({"unrotated": (0,), "positions": Learned(length=9)}, "d.unrotated needs rotary positions"),
        ({"sliding_window": SlidingWindow(window=0)}, "d.sliding_window.window=0 must be at least 1"),
        ({"sliding_window": SlidingWindow(full_layers=(5,))}, "d.sliding_window.full_layers names layer 5"),
        ({"sliding_window": SlidingWindow(positions=Rotary(share=0.5))}, "positions.share must equal that of d.posi"),
        ({"positions": Rotary(share=0.8)}, "a share=0.8 of each head"),
        (
            {"positions": Rotary(scaling=LongRopeScaling(short=(1.0,)))},
            "scaling.short has 1 factors, but there are 2 f",
        ),
        (
            {"positions": Rotary(scaling=LongRopeScaling(factor=2.0, short=TWO, long=TWO, length=10, longest=21))},
            "d.positions.scaling.longest=21, but the model supports texts of at most 20 tokens",
        ),
        ({"embedding_norm": True, "block": BlockStyle(post_norm=True)}, "d.embedding_norm has no effect"),
        ({"embedding_norm": False, "sliding_window": SlidingWindow(full_layers=(2,))}, "full_layers names layer 2"),
    ],
)
def test_settings_of_layers_that_do_not_fit_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        (Transformer if "embedding_norm" in changes else TextDecoder)(**SMALL | changes).check("d")


def test_a_decoder_reads_the_context_of_its_own_example():
    model = TextDecoder(**SMALL)
    row, context = texts(4, 3, 2), context_of([[1, 1, 2, 2]])
    params = initialised(model, row, context)
    apply = jax.jit(lambda context: model.apply(params, row, context).features[0])
    changed = apply(context._replace(features=context.features.at[0, 2].add(1.0)))
    assert (apply(context) != changed).any(-1).tolist() == [False] * 4 + [True] * 3 + [False] * 2
    # An example without context is the same whatever the others have, and as with an empty stream.
    nothing = apply(context._replace(segments=jnp.zeros_like(context.segments)))
    np.testing.assert_allclose(apply(context)[7:], nothing[7:], atol=1e-6)
    with pytest.raises(ValueError, match="needs a context"):
        model.apply(params, row)


def test_tied_decoders_have_no_read_out_of_their_own():
    row = texts(4)
    shapes = {
        tied: jax.eval_shape(TextDecoder(**SMALL, cross_attention=False, tied=tied).init, jax.random.key(0), row)[
            "params"
        ]
        for tied in (True, False)
    }
    assert set(shapes[False]) - set(shapes[True]) == {"logits"}


def test_a_mean_embedding_is_the_mean_of_each_texts_tokens():
    model = MeanEmbedding(vocabulary=19, width=5)
    row = texts(3, 4, room=9)
    params = initialised(model, row)
    spoilt = row._replace(features=jnp.where(row.segments > 0, row.features, 10**9))
    out = jax.jit(model.apply)(params, spoilt)
    table = np.asarray(params["params"]["embedding"]["embedding"])
    assert out.segments.tolist() == [[1, 0, 0, 2, 0, 0, 0, 0, 0]]
    ids = np.asarray(row.features[0])
    np.testing.assert_allclose(out.features[0, 0], table[ids[:3]].mean(0), atol=1e-6)
    np.testing.assert_allclose(out.features[0, 3], table[ids[3:7]].mean(0), atol=1e-6)
    assert not np.any(out.features[out.segments == 0])
