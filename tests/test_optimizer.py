"""What every rule does to the parameters of every part that mmjax ships."""

import functools
from fnmatch import fnmatch

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from optax.contrib import MuonDimensionNumbers
from test_fusion import ALL as FUSIONS

from mmjax import config as c
from mmjax.models.layers import FixedBatchNorm, dense
from mmjax.models.roles import Spec, specs
from mmjax.stream import Stream
from mmjax.tasks import Output
from mmjax.train.groups import grouped, split
from mmjax.train.optimizer import decayed, fixed
from mmjax.train.rules import matrices
from mmjax.train.step import init_parameters, init_state, make_train_step, unboxed
from mmjax.tree.part import kinds as all_kinds

SMALL = dict(layers=2, width=16, heads=2)
BLOCKS = dict(**SMALL, mlp=32)
CONVOLUTION = c.Convolution(kernel=4)
IMPORTED = c.Convolution(kernel=4, norm="batch")
PICTURE = dict(patch=8, image_size=16, mlp=32, **SMALL)
TEXT = dict(vocabulary=32, **BLOCKS)

ENCODERS = {
    "relative": c.Conformer(stem=c.StridedStem(channels=4), convolution=CONVOLUTION, **SMALL),
    "rotary": c.Conformer(
        positions=c.Rotary(),
        stem=c.StridedStem(subsampling=8, depthwise=True, channels=4),
        convolution=CONVOLUTION,
        norms=c.Norms(norm="rms"),
        **SMALL,
    ),
    "rotary_input": c.Conformer(
        positions=c.RotaryInput(),
        front_end=c.Waveform(),
        stem=c.WaveformStem(channels=4),
        convolution=IMPORTED,
        **SMALL,
    ),
    "distance": c.Conformer(
        positions=c.DistanceEmbeddings(),
        stem=c.StackedStem(subsampling=4),
        convolution=IMPORTED,
        norms=c.Norms(final=True),
        length_adapter=c.LengthAdapter(heads=2, mlp=24),
        **SMALL,
    ),
    "lstm": c.BiLSTM(layers=2, width=16),
    "cnn_lstm": c.BiLSTM(layers=1, width=16, stem="full", stem_channels=4),
    "whisper": c.WhisperEncoder(length=16, **BLOCKS),
    "vit": c.ViT(class_token=True, registers=2, block=c.BlockStyle(layer_scale=0.1), **PICTURE),
    "vit_gated": c.ViT(positions=c.Rotary(), block=c.BlockStyle(norm="rms", gated=True, bias=False), **PICTURE),
    "clip": c.ViT(class_token=True, input_norm=True, positions=c.CentredRotary(), **PICTURE),
    "convnet": c.ConvNet(patch=8, image_size=16, width=16),
    "bert": c.Transformer(positions=c.Learned(), types=2, block=c.BlockStyle(post_norm=True), **TEXT),
    "t5": c.Transformer(positions=c.DistanceBuckets(), block=c.BlockStyle(norm="rms", scale=1.0, head_width=4), **TEXT),
    "llama": c.Transformer(causal=True, block=c.BlockStyle(key_value_heads=1), **TEXT),
    "bag": c.MeanEmbedding(vocabulary=32, width=16),
    "ids": c.TokenIds(vocabulary=32),
    "sensor": c.Vectors(inputs=3, **BLOCKS),
}
TASKS = {
    "each": c.CTC(reads="bert", outputs=5),
    "aligned": c.EmbeddingCTC(reads="relative", projector=c.MLP(stack=2), width=16, outputs=5),
    "mean": c.Classify(reads="bert", outputs=5, pool=c.MeanPool()),
    "class": c.MultiLabel(reads="vit", outputs=5, pool=c.ClassPool()),
    "pooled": c.Regress(reads="vit", outputs=5, pool=c.AttentionPool(heads=2, mlp=32)),
    "words": c.LanguageModel(reads="llama", outputs=32),
    "hidden": c.MaskedTokens(reads="bert", outputs=32, block=c.BlockStyle()),
    "pairs": c.Contrast(
        between=("vit", "bert"),
        outputs=8,
        limit=100.0,
        pool={"vit": c.ClassPool(activation="tanh"), "bert": c.LastPool()},
    ),
    "patches": c.MaskedPatches(reads="vit_gated", decoder=c.PatchDecoder(**BLOCKS)),
    "codes": c.BestRQ(reads="relative", codes=32),
    "clean": c.Denoise(reads="relative"),
    "written": c.Write(reads=("relative", "vit"), decoder=c.TextDecoder(tied=False, **TEXT)),
    "continued": c.Write(
        reads=("bert",),
        decoder=c.TextDecoder(positions=c.DistanceBuckets(), block=c.BlockStyle(key_value_heads=1), **TEXT),
    ),
    "causal": c.CausalLM(reads="ids", decoder=c.TextDecoder(cross_attention=False, **TEXT)),
    "transduced": c.Transducer(reads="relative", outputs=32, width=16),
    "taught": c.MeanTeacher(of="mean"),
}
RULES = {
    "AdamW": c.AdamW(weight_decay=0.1),
    "Muon": c.Muon(weight_decay=0.1),
    "Lion": c.Lion(weight_decay=0.1),
    "Adafactor": c.Adafactor(weight_decay=0.1),
    "SGD": c.SGD(weight_decay=0.1),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)

# Every parameter of a shipped part is one of these, by the last names of its path.
STATISTICS = ("*/norm/mean", "*/norm/variance")
PROJECTIONS = ("*/kernel", "*_recurrent")
DEPTHWISE = ("*/convolution/kernel", "*/depthwise_?_kernel")
BETWEEN = ("*_input/kernel", "*_value/kernel", "*_gate/kernel", "*_factors/kernel", "*/condition/kernel")  # no stack
BETWEEN += ("*/dense/kernel", "*/transform/kernel", "*/projector/down/kernel")
STRIDED = ("*/length_adapter/*_convolution/kernel",)  # several tokens in
OTHERS = (
    "*bias",
    "*/scale",
    "*/log_scale",
    "*/embedding",  # of tokens, positions, distances in buckets, kinds of text
    "*/distance",
    "*/class_token",
    "*_class_token",
    "*/registers",
    "*/queries",
    "*/latents",
    "*/bottlenecks",
    "*/probe",
    "*/hidden",
    "*_kind",
)


def tokens(encoder):
    """The shapes of what an encoder reads: one row of 16 positions, or of one picture."""
    length, features, places = 16, (), ()
    if isinstance(encoder, c.SpeechEncoder):
        features = (encoder.front_end.hop,)
    elif isinstance(encoder, c.ImageEncoder):
        length, features, places = 4 + encoder.class_token + encoder.registers, (192,), (2,)
    elif isinstance(encoder, c.Vectors):
        features = (encoder.inputs,)
    return Stream(
        jax.ShapeDtypeStruct((1, length, *features), jnp.float32 if features else jnp.int32),
        jax.ShapeDtypeStruct((1, length), jnp.int32),
        jax.ShapeDtypeStruct((1, length, *places), jnp.int32),
    )


def specs_of_all():
    """What is known of the parameters of one model with every encoder and task, and of every fusion."""
    ids = tokens(ENCODERS["bert"])
    batch = {name: tokens(encoder) for name, encoder in ENCODERS.items()} | {"transcript": ids, "examples": ids}
    model = c.Multimodal(encoders=ENCODERS, tasks=TASKS)
    params = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
    streams = {name: ids._replace(features=jax.ShapeDtypeStruct((1, 16, 8), jnp.float32)) for name in ("image", "text")}
    for name, fusion in FUSIONS.items():
        params[f"fusion_{name}"] = jax.eval_shape(fusion.init, jax.random.key(0), streams, ids)["params"]
    return specs(params)


@pytest.fixture(scope="module")
def shapes():
    return by_path(specs_of_all())


@pytest.fixture(scope="module")
def distinct(shapes):
    """One parameter of each name and shape, since compiling takes seconds for the hundreds that there are."""
    return {kind(path, leaf): path for path, leaf in reversed(shapes.items())}


def kind(path, leaf):
    names = path.split("/")
    return tuple(names[-2:] if names[-1] == "kernel" else names[-1:]), leaf.shape


def by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda x: x is None or isinstance(x, MuonDimensionNumbers | Spec)
    )
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves}


def nested(leaves):
    return traverse_util.unflatten_dict(leaves, sep="/")


def random(shapes, paths, seed):
    noise = np.random.default_rng(seed)
    return nested({path: noise.standard_normal(shapes[path].shape, np.float32) for path in paths})


def is_one_of(path, patterns):
    return any(fnmatch(f"/{path}", pattern) for pattern in patterns)


def is_projection(path):
    return is_one_of(path, PROJECTIONS) and not is_one_of(path, DEPTHWISE)


def optimizer_of(rule, tree, rate=0.5):
    return c.Optimizer(rule=rule, schedule=c.Constant(peak=rate), clip=None).build(tree, steps=1)


@pytest.fixture(scope="module")
def first_step(shapes, distinct):
    """(rule, gradients, parameters) -> the updates by path; compiled once for each rule."""

    @functools.cache
    def compiled(rule):
        optimizer = optimizer_of(rule, nested({path: shapes[path] for path in distinct.values()}))
        return jax.jit(lambda gradients, params: optimizer.update(gradients, optimizer.init(params), params)[0])

    return lambda rule, gradients, params: by_path(jax.device_get(compiled(rule)(gradients, params)))


def test_every_part_is_here(shapes, distinct):
    """A new encoder, pool, fusion or task belongs into the tables above, and its parameters into one of their kinds."""
    kinds = {*map(type, ENCODERS.values()), *map(type, TASKS.values()), *map(type, FUSIONS.values())}
    pools = [getattr(task, "pool", None) or {} for task in TASKS.values()]
    kinds |= {type(pool) for one in pools for pool in (one.values() if isinstance(one, dict) else [one])}
    ours = {kind for base in (c.Encoder, c.Task, c.Fusion, c.Pool) for kind in all_kinds(base).values()}
    assert kinds == {kind for kind in ours if kind.__module__.startswith("mmjax.")}
    params = nested(shapes)
    decays, still, axes = (by_path(mark(params)) for mark in (decayed, fixed, matrices))
    for path, leaf in shapes.items():
        assert is_projection(path) + is_one_of(path, (*STATISTICS, *DEPTHWISE, *OTHERS)) == 1, path
        assert decays[path] == is_projection(path) and still[path] == is_one_of(path, STATISTICS), path
        if {"layers", "pool"} & set(path.split("/")):  # so that the steps below are right for all of them
            assert axes[path] == axes[distinct[kind(path, leaf)]], path


@every_rule
def test_projections_decay_and_nothing_else_does(rule, shapes, distinct, first_step):
    """By learning rate x weight_decay in a step without gradients."""
    params = random(shapes, distinct.values(), 0)
    updates = first_step(rule, jax.tree.map(np.zeros_like, params), params)
    for path, before in by_path(params).items():
        if is_projection(path):
            np.testing.assert_allclose(updates[path], -0.5 * 0.1 * before, rtol=1e-5, err_msg=path)
        else:
            assert not updates[path].any(), path


@every_rule
def test_given_statistics_never_move(rule, shapes, distinct, first_step):
    """Even where a gradient comes; everything else moves."""
    gradients, params = (random(shapes, distinct.values(), seed) for seed in (1, 0))
    updates = first_step(rule, gradients, params)
    assert sum(is_one_of(path, STATISTICS) for path in updates) == 2
    for path, update in updates.items():
        assert (not update.any()) if is_one_of(path, STATISTICS) else update.all(), path


def as_matrices(path, array):
    """The matrices [in, out] that the layer multiplies by, or None where Adam trains the parameter."""
    names = path.split("/")
    inside = {"layers", "pool", "length_adapter"} & set(names) or is_one_of(path, BETWEEN)
    outside = "router" in names or is_one_of(path, STRIDED)
    if not inside or outside or not is_projection(path):
        return None
    one = array.reshape(-1, *array.shape[("layers" in names) + ("experts" in names) :])  # of each layer or expert
    if names[-2] in ("qkv", "query", "key_value", "query_key", "value"):  # [in, which, head, feature]
        return one.swapaxes(1, 2).reshape(-1, one.shape[1], one.shape[3] * one.shape[4])
    if names[-2] == "out":  # [head, feature, out]
        return one.reshape(len(one), -1, one.shape[-1])
    return one


@every_rule
def test_a_frozen_part_has_no_moments_and_every_other_part_has_its_own(rule, shapes):
    params = nested(shapes)

    def moments(params):
        optimizer = optimizer_of(rule, params, rate=0.5)
        arrays = jax.tree.map(lambda spec: jax.ShapeDtypeStruct(spec.shape, jnp.float32), params)
        return sum(np.prod(x.shape, dtype=int) for x in jax.tree.leaves(jax.eval_shape(optimizer.init, arrays)))

    whole, none = moments(params), moments({})
    parts = [*(f"encoders.{name}" for name in ENCODERS), *(f"tasks.{name}" for name in TASKS)]
    parts = [part for part in parts if has_parameters(part, shapes)]
    for chosen in (parts[::2], parts[1::2]):
        trained, frozen = split(params, grouped({f"{part}.**": c.Group(frozen=True) for part in chosen}, params))
        names = {path.split("/")[0] for path, leaf in by_path(frozen).items() if leaf is not None}
        assert names == {part.replace(".", "_") for part in chosen}
        # Each parameter has the same moments with and without the others, so the parts add up to the whole.
        assert moments(trained) + moments(frozen) - none == whole


def has_parameters(part, shapes):
    return any(path.startswith(f"{part.replace('.', '_')}/") for path in shapes)


def test_muon_makes_the_matrix_of_every_hidden_projection_orthogonal(shapes, distinct, first_step):
    """Its singular values are all about 0.2 sqrt(max(in, out)), as Newton-Schulz leaves them; the rest is Adam's."""
    gradients = random(shapes, distinct.values(), 2)
    updates = first_step(RULES["Muon"], gradients, jax.tree.map(np.zeros_like, gradients))
    seen = set()
    for path, update in updates.items():
        stack = as_matrices(path, update)
        if stack is not None:
            values = np.linalg.svd(stack, compute_uv=False) / (0.5 * 0.2 * max(stack.shape[1:]) ** 0.5)
            assert values.max() < 1.3 and values.mean() > 0.7, (path, values)
            seen |= set(path.split("/"))
        elif not is_one_of(path, STATISTICS):  # Adam's first step has one size everywhere
            np.testing.assert_allclose(np.abs(update), np.abs(update).max(), rtol=1e-3, err_msg=path)
    assert seen >= {"qkv", "query", "key_value", "query_key", "value", "out", "position", "experts", "pool"}


class Square:
    """A task whose loss is smallest where the output is 1."""

    weight, labelled, imitates = 1.0, False, False

    def loss(self, output):
        return {"loss": (((output.prediction - 1.0) ** 2).sum(), jnp.float32(output.prediction.size))}


class Normalised(nn.Module):
    """A model with an imported batch normalisation between two projections."""

    tasks = {"out": Square()}

    @nn.compact
    def __call__(self, batch, train=False):
        x = dense(64, (None, "embed"), jnp.float32, "first")(batch["x"][None])[0]
        out = dense(1, ("embed", None), jnp.float32, "last")(FixedBatchNorm(name="norm")(x)[None])[0]
        return {"out": Output(out, None)}


@every_rule
def test_training_leaves_given_statistics_as_they_are_to_the_bit(rule):
    """Where parameters are rounded at random, too."""
    batch = {"x": np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)}
    params = jax.jit(lambda: init_parameters(Normalised(), batch, 0))()
    optimizer = optimizer_of(rule, specs(params), rate=1e-2)
    state = unboxed(init_state(params, optimizer, average=True, parameters="bfloat16"))
    given = {name: np.linspace(0.3, 1.7, 64).astype(jnp.bfloat16) for name in ("mean", "variance")}
    average = {name: value.astype(np.float32) for name, value in given.items()}
    state = state._replace(
        params={**state.params, "norm": {**state.params["norm"], **given}},
        average={**state.average, "norm": {**state.average["norm"], **average}},
    )
    step = jax.jit(make_train_step(Normalised(), optimizer, average_decay=0.9))
    after = state
    for _ in range(3):
        after, _ = step(after, batch)
    before, after = jax.device_get((state, after))
    for path, value in by_path(after.params).items():
        assert np.array_equal(value, by_path(before.params)[path]) == is_one_of(path, STATISTICS), path
    for name, value in average.items():
        np.testing.assert_allclose(after.average["norm"][name], value, rtol=1e-6)
