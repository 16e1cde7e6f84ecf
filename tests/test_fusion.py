"""Fusions: each equals its paper's formula in float64, keeps the invariants, and learns what it can."""

import dataclasses
import json
import math
import pathlib
import re
import subprocess
import sys
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import tiny
from untrained import parameters

from mmjax import check
from mmjax import config as c
from mmjax.errors import UserError
from mmjax.flops import matrix_flops
from mmjax.models.blocks import BlockSettings
from mmjax.models.fusion.base import pool, spread
from mmjax.models.fusion.film import FiLMBlock
from mmjax.models.fusion.mixture_of_experts import Experts
from mmjax.models.layers import FeedForward, dense
from mmjax.models.segments import having
from mmjax.stream import Stream, only_tokens
from mmjax.train.build import build_model
from mmjax.train.validate import check_config
from mmjax.tree import with_settings

SIZES = {"layers": 1, "heads": 2, "mlp": 16, "width": 8}
ALL = {
    "CrossAttention": c.CrossAttention(**SIZES, queries=2),
    "Concat": c.Concat(**SIZES),
    "Add": c.Add(width=8),
    "Weighted": c.Weighted(width=8),
    "LowRank": c.LowRank(width=8, rank=3),
    "FiLM": c.FiLM(by="text", layers=1, mlp=16, width=8),
    "Bottleneck": c.Bottleneck(**SIZES | {"layers": 2}, bottlenecks=2),
    "Perceiver": c.Perceiver(**SIZES, latents=2),
    "MixtureOfExperts": c.MixtureOfExperts(**SIZES, queries=2, experts=3, chosen=2),
}
every_fusion = pytest.mark.parametrize("name", ALL)


def build(part, **changes):
    return dataclasses.replace(part, **changes)


def stream(segments, width, seed=0):
    segments = np.array(segments, np.int32)
    features = np.random.default_rng(seed).standard_normal((*segments.shape, width)).astype(np.float32)
    return Stream(features, segments, np.zeros_like(segments))


# One row: example 1 has image and text, 2 has an image, 3 a text, and nobody stands in slot 4.
IMAGE, TEXT = stream([[1, 1, 2, 2, 2, 0]], 6, seed=1), stream([[3, 1, 1, 0]], 5, seed=2)
SLOTS = stream([[1, 2, 3, 0]], 1)
BOTH = {"image": IMAGE, "text": TEXT}


@partial(jax.jit, static_argnums=0)
def _apply(module, params, *inputs):
    with jax.default_matmul_precision("highest"):
        return module.apply({"params": params}, *inputs)


def apply(*inputs):
    return jax.device_get(_apply(*inputs))


# The invariants. ------------------------------------------------------------------------------------------


def of_two(fusion):
    """The tiny config with image and text only."""
    config = tiny(evaluation=c.Evaluation(subsets=("image+text",)))
    encoders = {name: config.model.encoders[name] for name in ("image", "text")}
    tasks = {"answer": config.model.tasks["answer"]}
    model = dataclasses.replace(config.model, encoders=encoders, tasks=tasks, fusion=fusion)
    rows = {name: config.data.rows[name] for name in ("image", "text", "examples")}
    data = dataclasses.replace(config.data, rows=rows, subsets={"image+text": 0.5, "image": 0.3, "text": 0.2})
    return dataclasses.replace(config, model=model, data=data)


class Linear(nn.Module):
    """The cheapest encoder."""

    reads_examples = False

    @nn.compact
    def __call__(self, stream, train=False):
        stream = only_tokens(stream)
        features = stream.features.astype(jnp.float32) / 128
        features = features if features.ndim == 3 else features[..., None]
        return only_tokens(stream._replace(features=dense(8, (None, "embed"), jnp.float32, "projection")(features)))


@pytest.mark.parametrize(
    "name", [one if one == "CrossAttention" else pytest.param(one, marks=pytest.mark.slow) for one in ALL]
)
def test_the_invariants_hold(name, monkeypatch):
    """As `mmjax check` measures them on real data; the encoders, which are not the subject, are linear here."""

    def with_linear_encoders(config, encoded=()):
        return build_model(config).clone(encoders={"image": Linear(), "text": Linear()})

    monkeypatch.setattr(check, "build_model", with_linear_encoders)
    config = of_two(ALL[name])
    check_config(config)
    with jax.default_matmul_precision("highest"):
        subject = check.Subject(config)
        assert check.packing(subject) <= check.TOLERANCES["packing"]
        assert check.emptiness(subject) <= check.TOLERANCES["emptiness"]
        # The gradients of the mixture are sums whose rounding alone reaches 1.01e-6 without AVX.
        assert check.absence(subject) <= 3 * check.TOLERANCES["absence"]
        # An example that has lost all its modalities still has a slot and a label.
        lost = {
            n: s if n in ("examples", "answer") else jax.tree.map(np.zeros_like, s) for n, s in subject.batch.items()
        }
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(subject.run(lost)))


def test_nothing_in_an_empty_position_reaches_a_fusion():
    """Not even what no encoder leaves there; the projections come first in all fusions."""
    module = c.Add(width=8)
    params = parameters(module, BOTH, SLOTS)
    spoilt = {
        name: s._replace(features=np.where(s.mask[..., None], s.features, np.float32(np.nan)))
        for name, s in BOTH.items()
    }
    loss = jax.jit(jax.grad(lambda params, streams: module.apply({"params": params}, streams, SLOTS).features.sum()))
    jax.tree.map(np.testing.assert_array_equal, loss(params, BOTH), loss(params, spoilt))


@pytest.mark.long
@every_fusion
def test_all_five_invariants_hold_for_three_modalities(name, tmp_path):
    config = tiny()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, fusion=ALL[name]))
    (tmp_path / "config.json").write_text(c.to_json(config))
    command = [sys.executable, "-m", "mmjax", "check", str(tmp_path / "config.json"), "--json"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr + process.stdout
    assert all(result["holds"] for result in json.loads(process.stdout).values())


@every_fusion
def test_training_in_bfloat16_with_dropout_and_layers_unrolled(name):
    part = ALL[name]
    part = dataclasses.replace(part, dropout=0.1) if hasattr(part, "dropout") else part
    fusion = with_settings(part, dtype=jnp.bfloat16, unroll=True)

    def run(streams, slots):
        params = fusion.init(jax.random.key(0), streams, slots)
        return params, fusion.apply(params, streams, slots, train=True, rngs={"dropout": jax.random.key(1)})

    halved = {m: s._replace(features=jnp.asarray(s.features, jnp.bfloat16)) for m, s in BOTH.items()}
    params, out = jax.eval_shape(run, halved, SLOTS)
    assert out.features.dtype == jnp.bfloat16 and out.features.shape == (1, 4, 8)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_the_result_of_cross_attention_is_what_it_was():
    """Runs that were trained before the other fusions existed can still be read."""
    fusion = build(ALL["CrossAttention"], layers=2, mlp=12, queries=3)
    generator = np.random.default_rng(0)

    def made(segments, width):
        segments = np.array([segments], np.int32)
        features = generator.standard_normal((*segments.shape, width)).astype(np.float32)
        return Stream(features, segments, np.zeros_like(segments))

    streams = {"image": made([1, 1, 2, 2, 0], 6), "text": made([2, 1, 1, 3], 8)}
    params = nn.unbox(jax.jit(fusion.init)(jax.random.key(0), streams, SLOTS))["params"]
    assert sorted(params) == [
        "image_kind",
        "image_norm",
        "image_projection",
        "layers",
        "norm",
        "queries",
        "text_kind",
        "text_norm",
        "text_projection",
    ]
    assert sorted(params["layers"]) == [
        "cross_attention",
        "cross_norm",
        "mlp",
        "mlp_norm",
        "self_attention",
        "self_norm",
    ]
    golden = [[0.82650, -0.68332, -0.84221], [0.37509, 0.28919, -2.04956], [0.08552, 1.49395, -0.05294], [0, 0, 0]]
    np.testing.assert_allclose(apply(fusion, params, streams, SLOTS).features[0, :, :3], golden, atol=2e-5)


# The parts. -----------------------------------------------------------------------------------------------


def test_pool_is_the_mean_of_an_examples_tokens_and_spread_its_way_back():
    spoilt = IMAGE._replace(features=np.where(IMAGE.mask[..., None], IMAGE.features, np.nan))
    summary = pool(spoilt, SLOTS)
    expected = [IMAGE.features[0, IMAGE.segments[0] == s].mean(0) if s in (1, 2) else np.zeros(6) for s in (1, 2, 3, 0)]
    np.testing.assert_allclose(summary.features[0], expected, atol=1e-6)
    assert summary.segments.tolist() == having(IMAGE, SLOTS).tolist() == [[1, 2, 0, 0]]
    back = spread(summary, np.array([[2, 3, 0, 1]]))
    np.testing.assert_array_equal(back[0], summary.features[0, [1, 2, 3, 0]])


# References in float64. -----------------------------------------------------------------------------------


def float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def norm(x, p):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * p["scale"] + p["bias"] if p else x


def linear(x, p):
    return x @ p["kernel"] + p["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def silu(x):
    return x / (1 + np.exp(-x))


def attend(query, key, value, out):
    """One example: [heads, T, D] each, and the output projection."""
    scores = np.einsum("htd,hsd->hts", query, key) / math.sqrt(query.shape[-1])
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    return np.einsum("hts,hsd,hdw->tw", weights, value, out["kernel"]) + out["bias"]


def heads(x, p):
    """[T, W] -> count x [heads, T, D]."""
    return np.einsum("tw,wchd->chtd", x, p["kernel"]) + p["bias"][:, :, None]


def common(params, name, number, streams=BOTH):
    """The tokens of one example of one modality, as all fusions see them."""
    tokens = streams[name].features[0, streams[name].segments[0] == number].astype(np.float64)
    return norm(linear(tokens, params[f"{name}_projection"]), params[f"{name}_norm"]) + params[f"{name}_kind"]


def examples_of(params):
    """Per example of BOTH: its tokens by modality, only those that it has."""
    return [{m: t for m in BOTH if len(t := common(params, m, number))} for number in (1, 2, 3)]


def layers(params):
    return [
        jax.tree.map(lambda p, i=i: p[i], params["layers"]) for i in range(len(jax.tree.leaves(params["layers"])[0]))
    ]


def compare(name, reference, **changes):
    """The packed row against the reference on one example at a time: reference(params, tokens by modality)."""
    fusion = build(ALL[name], **changes)
    params = parameters(fusion, BOTH, SLOTS)
    out = apply(fusion, params, BOTH, SLOTS).features[0]
    params = float64(params)
    expected = [reference(params, tokens) for tokens in examples_of(params)]
    np.testing.assert_allclose(out[:3], expected, atol=2e-5, rtol=2e-5)
    assert not out[3].any(), "nobody stands in the last slot"


def test_concat_is_a_transformer_over_the_joined_tokens():
    def reference(params, tokens):
        x = np.concatenate([*tokens.values(), params["class_token"]])
        for p in layers(params):
            x = x + attend(*heads(norm(x, p["attention_norm"]), p["attention"]["qkv"]), p["attention"]["out"])
            x = x + linear(gelu(linear(norm(x, p["mlp_norm"]), p["mlp"]["up"])), p["mlp"]["down"])
        return norm(x[-1], params["norm"])

    compare("Concat", reference, layers=2)


def test_the_latents_of_perceiver_attend_to_tokens_and_latents_joined():
    def reference(params, tokens):
        x, media = params["latents"], np.concatenate([*tokens.values()])
        for p in layers(params):
            latents = norm(x, p["latent_norm"])
            (query,) = heads(latents, p["attention"]["query"])
            keys = np.concatenate([norm(media, p["token_norm"]), latents])
            x = x + attend(query, *heads(keys, p["attention"]["key_value"]), p["attention"]["out"])
            x = x + linear(gelu(linear(norm(x, p["mlp_norm"]), p["mlp"]["up"])), p["mlp"]["down"])
        return norm(x, params["norm"]).mean(0)

    compare("Perceiver", reference, layers=2)


def test_bottleneck_averages_what_the_modalities_make_of_the_bottlenecks():
    def reference(params, tokens):
        own = {m: np.concatenate([t, params[f"{m}_class_token"]]) for m, t in tokens.items()}
        shared = params["bottlenecks"]
        for layer in layers(params):
            updates = []
            for m in own:
                p, x = layer[f"{m}_block"], np.concatenate([own[m], shared])
                x = x + attend(*heads(norm(x, p["attention_norm"]), p["attention"]["qkv"]), p["attention"]["out"])
                x = x + linear(gelu(linear(norm(x, p["mlp_norm"]), p["mlp"]["up"])), p["mlp"]["down"])
                own[m], update = x[: len(own[m])], x[len(own[m]) :]
                updates.append(update)
            shared = np.mean(updates, axis=0)
        return np.mean([norm(x[-1], params["norm"]) for x in own.values()], axis=0)

    compare("Bottleneck", reference, layers=3)


def test_add_is_the_sum_of_projected_means():
    compare("Add", lambda params, tokens: sum(linear(t.mean(0), params[f"{m}_value"]) for m, t in tokens.items()))


def test_weighted_is_the_bimodal_gated_unit():
    def reference(params, tokens):
        said = {m: np.tanh(linear(t.mean(0), params[f"{m}_value"])) for m, t in tokens.items()}
        if len(said) == 1:
            return next(iter(said.values()))
        joined = np.concatenate([tokens["image"].mean(0), tokens["text"].mean(0)])
        kernel = np.concatenate([params["image_gate"]["kernel"], -params["text_gate"]["kernel"]])
        z = 1 / (1 + np.exp(-(joined @ kernel + params["image_gate"]["bias"] - params["text_gate"]["bias"])))
        return z * said["image"] + (1 - z) * said["text"]

    compare("Weighted", reference)


def test_low_rank_equals_the_explicit_outer_product():
    rank, width = 3, 8

    def reference(params, tokens):
        tensor, product = None, None
        for m, t in tokens.items():
            p = params[f"{m}_factors"]
            # [width + 1, rank, outputs]: the last row meets the appended 1.
            factors = np.concatenate([p["kernel"], 1 + p["bias"][None]]).reshape(-1, rank, width)
            z = np.append(t.mean(0), 1.0)
            tensor = factors if tensor is None else np.einsum("iro,jro->ijro", tensor, factors)
            product = z if product is None else np.multiply.outer(product, z)
        weight = tensor.sum(axis=-2)  # the full weight tensor, of all ranks
        return np.tensordot(product, weight, axes=product.ndim)

    compare("LowRank", reference)


def test_film_scales_and_shifts_by_its_condition():
    block, x = FiLMBlock(BlockSettings(mlp=16)), stream([[1, 1, 2, 0]], 8).features
    condition = stream([[1, 0]], 8, seed=3)  # example 2 has none
    segments = np.array([[1, 1, 2, 0]])
    params = parameters(block, x, segments, condition)
    out, p = apply(block, params, x, segments, condition)[0], float64(params)
    by = condition.features[0, 0].astype(np.float64)
    scale, shift = linear(by, p["scale"]), linear(by, p["shift"])
    for token, (gamma, beta) in enumerate([(1 + scale, shift)] * 2 + [(1.0, 0.0)]):
        hidden = np.maximum(linear(gamma * norm(x[0, token].astype(np.float64), None) + beta, p["mlp"]["up"]), 0)
        np.testing.assert_allclose(out[0, token], x[0, token] + linear(hidden, p["mlp"]["down"]), atol=2e-5)


def test_film_modulates_the_others_and_reads_both():
    def reference(params, tokens):
        total, by = np.zeros(8), tokens.get("text")
        if by is not None:
            total = total + linear(by.mean(0), params["condition"])
        if "image" in tokens:
            x = tokens["image"]
            for p in layers(params):
                scale, shift = (0.0, 0.0) if by is None else (linear(by.mean(0), p[n]) for n in ("scale", "shift"))
                hidden = np.maximum(linear((1 + scale) * norm(x, None) + shift, p["mlp"]["up"]), 0)
                x = x + linear(hidden, p["mlp"]["down"])
            total = total + x.mean(0)
        return norm(total, params["norm"])

    compare("FiLM", reference, layers=2)


def test_film_reads_the_condition_alone_and_the_others_without_it():
    fusion = build(ALL["FiLM"])
    params = parameters(fusion, BOTH, SLOTS)
    out = apply(fusion, params, BOTH, SLOTS).features[0]
    for number, name in ((2, "image"), (3, "text")):
        alone = apply(fusion, params, {name: BOTH[name]}, SLOTS).features[0]
        np.testing.assert_allclose(alone[number - 1], out[number - 1], atol=1e-6)
        assert np.abs(alone[0] - out[0]).max() > 0.1, "example 1 has both"


def exchange(bottlenecks):
    """How far the effect of another image depends on the text of the same example."""
    fusion = build(ALL["Bottleneck"], bottlenecks=bottlenecks)
    params = parameters(fusion, BOTH, SLOTS)

    def effect(text):
        other = IMAGE._replace(features=-IMAGE.features)
        one, two = (apply(fusion, params, {"image": i, "text": text}, SLOTS).features[0, 0] for i in (IMAGE, other))
        return one - two

    return np.abs(effect(TEXT) - effect(TEXT._replace(features=1 - TEXT.features))).max()


def test_without_bottlenecks_there_is_no_exchange():
    assert exchange(0) < 1e-6
    assert exchange(2) > 1e-2


def test_one_expert_is_a_plain_feed_forward_layer():
    x = stream([[1, 1, 2]], 8).features
    mixture, plain = Experts(16, 1, 1), FeedForward(16, nn.silu, gated=True)
    params = parameters(mixture, x)
    inner = jax.tree.map(lambda p: p[0], params["experts"])
    np.testing.assert_allclose(apply(mixture, params, x), apply(plain, inner, x), atol=1e-6)


def test_each_token_is_the_weighted_sum_of_the_experts_it_chooses():
    x = stream([[1, 1, 2, 2, 3]], 8).features
    mixture = Experts(16, 4, 2)
    params = parameters(mixture, x)
    out, p = apply(mixture, params, x), float64(params)
    choices = set()
    for token, result in zip(x[0].astype(np.float64), out[0], strict=True):
        probability = np.exp(linear(token, p["router"]))
        probability /= probability.sum()
        chosen = np.argsort(-probability)[:2]
        choices.add(tuple(sorted(chosen.tolist())))
        expected = 0.0
        for e in chosen:
            gate, up, down = (jax.tree.map(lambda q, e=e: q[e], p["experts"][n]) for n in ("gate", "up", "down"))
            expected = expected + probability[e] * linear(silu(linear(token, gate)) * linear(token, up), down)
        np.testing.assert_allclose(result, expected, atol=2e-5)
    assert len(choices) > 1, "tokens choose for themselves"


# What each can learn. -------------------------------------------------------------------------------------


def xor(seed, rows=4, slots=8):
    """Examples of one bit in the image and one in the text (two noisy tokens each); the label is whether they differ."""
    generator = np.random.default_rng(seed)
    bits = generator.permutation(np.arange(rows * slots) % 4).reshape(rows, slots)
    bits = {"image": bits % 2, "text": bits // 2}
    segments = np.tile(np.repeat(np.arange(1, slots + 1, dtype=np.int32), 2), (rows, 1))

    def tokens(name):
        direction = np.random.default_rng(len(name)).standard_normal(4)
        features = (2 * np.repeat(bits[name], 2, axis=1)[..., None] - 1) * direction
        features = features + 0.2 * generator.standard_normal(features.shape)
        return Stream(features.astype(np.float32), segments, np.zeros_like(segments))

    slots = Stream(np.zeros_like(segments[:, ::2]), segments[:, ::2], np.zeros_like(segments[:, ::2]))
    streams, slots = jax.tree.map(jnp.asarray, ({"image": tokens("image"), "text": tokens("text")}, slots))
    return streams, slots, bits["image"] ^ bits["text"]


def learned_share_of_xor(fusion, steps=150):
    """Accuracy on new examples after a short training with a linear head."""
    streams, slots, labels = xor(0)
    head = nn.Dense(2)
    params = {"fusion": parameters(fusion, streams, slots), "head": parameters(head, np.ones(8))}
    rule = optax.adam(1e-2)

    def logits(params, streams):
        fused = fusion.apply({"params": params["fusion"]}, streams, slots)
        return head.apply({"params": params["head"]}, fused.features)

    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, streams), labels).mean()

    def step(carry, _):
        params, state = carry
        updates, state = rule.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    new, _, expected = xor(1)

    @jax.jit
    def run(params):
        (params, _), _ = jax.lax.scan(step, (params, rule.init(params)), length=steps)
        return (logits(params, new).argmax(-1) == expected).mean()

    return float(run(params))


LEARNERS = ALL | {"Bottleneck of 0": dataclasses.replace(ALL["Bottleneck"], bottlenecks=0)}


@pytest.mark.parametrize(
    "name",
    [name if name in ("CrossAttention", "Add") else pytest.param(name, marks=pytest.mark.slow) for name in LEARNERS],
)
def test_fusions_learn_xor_where_modalities_meet(name):
    """A sum of functions of single modalities gets at most three of the four cases right."""
    accuracy = learned_share_of_xor(LEARNERS[name])
    assert accuracy <= 0.75 + 1e-6 if name in ("Add", "Bottleneck of 0") else accuracy == 1.0


# The config. -------------------------------------------------------------------------------------------


def test_the_costs_on_the_page_are_those_of_the_code():
    page = pathlib.Path("docs/fusion.md").read_text()
    stated = dict(re.findall(r"^\| `(\w+)` \|.*\| ([\d.]+ M, \d+ MFLOP) \|", page, re.MULTILINE))
    assert stated.keys() == ALL.keys()
    sizes = {"speech": (160, 96), "image": (448, 128), "text": (30, 96)}
    streams = {name: stream(np.zeros((1, length)), width) for name, (length, width) in sizes.items()}
    slots = stream(np.zeros((1, 8)), 1)
    for name, cost in stated.items():
        fusion = build(getattr(c, name)(**{"by": "text"} if name == "FiLM" else {}))
        params = jax.eval_shape(fusion.init, jax.random.key(0), streams, slots)
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
        flops = sum(matrix_flops(fusion.apply, params, streams, slots).values())
        assert cost == f"{count / 1e6:.2f} M, {flops / 1e6:.0f} MFLOP", name


@pytest.mark.parametrize(
    "fusion, message",
    [
        (c.FiLM(by="smell", width=8), "model.fusion.by='smell' is no modality; there are image, text"),
        (c.Bottleneck(layers=1, width=8), "exchange nothing before the second layer"),
        (c.MixtureOfExperts(experts=2, chosen=3, width=8), "chosen=3 is more than its 2 experts"),
        (c.Concat(width=9, heads=2), "model.fusion.width=9 does not divide among 2 heads"),
        (c.LowRank(rank=0), "model.fusion.rank is 0"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_fusions_that_cannot_work_are_refused(fusion, message):
    with pytest.raises(UserError, match=message):
        check_config(of_two(fusion))


def test_a_fusion_is_chosen_by_one_key():
    config = c.override(tiny(), ["--model.fusion", "FiLM", "--model.fusion.by", "speech"])
    assert config.model.fusion == c.FiLM(by="speech")
    assert c.from_json(c.to_json(config)) == config
