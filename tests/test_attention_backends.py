"""Every backend of attention against the definition in float64: forward and gradients; and how one is chosen."""

import dataclasses
import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny

from mmjax import config as c
from mmjax.errors import UserError
from mmjax.models.attend import (
    BACKENDS,
    Inputs,
    Place,
    Selection,
    attention,
    block_diagonal,
    chunked,
    decide,
    decisions,
    with_backend,
)
from mmjax.models.attend import cudnn as cudnn_
from mmjax.models.attend import splash as splash_
from mmjax.parallel.runtime import simulated
from mmjax.stream import Stream
from mmjax.train.validate import check_config

T, S, H, D = 200, 150, 4, 16  # queries, keys of a cross-attention, heads, features of each
GPU = Place("gpu", "NVIDIA H100 80GB HBM3")
TPU = Place("tpu", "TPU v5")
CPU = Place("cpu", "cpu")


def rows(length, *examples):
    """Segments and positions of a row: (start, tokens) of examples 1, 2, ...; the rest is empty."""
    segments, positions = np.zeros((2, length), np.int32)
    for number, (start, tokens) in enumerate(examples, 1):
        segments[start : start + tokens] = number
        positions[start : start + tokens] = np.arange(tokens)
    return segments, positions


# One example alone with an empty end; three with gaps, one of them without keys, and keys without queries; nothing.
QUERIES = [np.stack(x) for x in zip(rows(T, (0, 190)), rows(T, (3, 60), (70, 41), (111, 80)), rows(T), strict=True)]
KEYS = [
    np.stack(x) for x in zip(rows(S, (0, 100)), rows(S, (0, 50), (50, 0), (70, 33), (110, 20)), rows(S), strict=True)
]


@dataclasses.dataclass(frozen=True)
class Case:
    """One cell of the matrix, but for backend, grouping and dtype."""

    cross: bool
    # full, causal, window (blocks of 3 positions, at most 2 back), array (the same window, as of a layer), cap (causal, with a
    # soft cap), bias, both ways (at most 5 positions back or ahead), or full with hidden patches between
    sees: str

    def make(self, few: int, dtype) -> dict:
        generator = np.random.default_rng(0)
        (segments, positions), (key_segments, key_positions) = QUERIES, KEYS if self.cross else QUERIES
        of_queries, of_keys = (3, H, T, D), (3, few, key_segments.shape[1], D)
        if self.sees == "holes":
            segments = key_segments = np.where(generator.random(segments.shape) < 0.6, 0, segments)
        arrays = [generator.standard_normal(shape).astype(dtype) for shape in (of_queries, of_keys, of_keys)]
        made = dict(zip(("query", "key", "value"), arrays, strict=True))
        made |= dict(query_segments=segments, key_segments=key_segments, packed=not self.cross)
        if self.sees == "bias":
            made["bias"] = generator.standard_normal((3, H, T, key_segments.shape[1])).astype(np.float32)
        if self.sees in ("causal", "cap"):
            made |= dict(query_times=positions, key_times=key_positions, in_order=not self.cross)
        if self.sees in ("window", "array"):
            window = 2 if self.sees == "window" else jnp.asarray(2)
            made |= dict(query_times=positions // 3, key_times=key_positions // 3, window=window)
        if self.sees == "both ways":
            made |= dict(query_times=positions, key_times=key_positions, window=5, bidirectional=True)
        if self.sees == "cap":
            made["soft_cap"] = 0.8
        return made


CASES = [Case(cross, sees) for cross in (False, True) for sees in ("full", "causal", "window", "array", "cap", "bias")]
CASES += [Case(False, "holes"), Case(False, "both ways")]
COTANGENT = np.random.default_rng(1).standard_normal((3, H, T, D))


def definition(
    query,
    key,
    value,
    query_segments,
    key_segments,
    bias=None,
    query_times=None,
    key_times=None,
    window=None,
    soft_cap=None,
    in_order=False,
    packed=False,
    bidirectional=False,
):
    """The result, and the gradients of sum(COTANGENT * result), query by query in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    out, grads = np.zeros_like(query), [np.zeros_like(x) for x in (query, key, value)]
    to_bias = None if bias is None else np.zeros(bias.shape)
    for row, head, t in np.ndindex(*query.shape[:3]):
        if query_segments[row, t] == 0:
            continue
        seen = key_segments[row] == query_segments[row, t]
        if query_times is not None:
            ago = query_times[row, t] - key_times[row]
            ago = abs(ago) if bidirectional else ago
            seen = seen & (ago >= 0) & (ago <= (10**9 if window is None else window))
        at, few = np.flatnonzero(seen), head // (H // key.shape[1])
        if len(at) == 0:
            continue
        scores = key[row, few, at] @ query[row, head, t] + (0 if bias is None else bias[row, head, t, at])
        scores, slope = scores / D**0.5, 1.0
        if soft_cap is not None:
            scores, slope = soft_cap * np.tanh(scores / soft_cap), 1 - np.tanh(scores / soft_cap) ** 2
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        out[row, head, t] = weights @ value[row, few, at]
        cotangent = COTANGENT[row, head, t]
        to_weights = value[row, few, at] @ cotangent
        to_scores = slope * weights * (to_weights - weights @ to_weights) / D**0.5
        grads[0][row, head, t] = to_scores @ key[row, few, at]
        grads[1][row, few, at] += np.outer(to_scores, query[row, head, t])
        grads[2][row, few, at] += np.outer(weights, cotangent)
        if bias is not None:
            to_bias[row, head, t, at] = to_scores
    return [out, *grads] + ([] if bias is None else [to_bias])


# What a test can run: several blocks each, and the kernel for TPUs through Pallas's interpreter.
COMPUTE = {
    "xla": BACKENDS["xla"].compute,
    "chunked": functools.partial(chunked.chunked, block=64),
    # Windows of 112 tokens, of which one holds two examples, and of a whole row.
    "block_diagonal": functools.partial(block_diagonal.block_diagonal, sizes=(48, 112)),
    "splash": functools.partial(splash_.splash, interpret=True, block=128),
    "cudnn": cudnn_.cudnn,
}
PLACES = {"splash": TPU, "cudnn": GPU}


def has_gpu() -> bool:
    return any(device.platform == "gpu" for device in jax.devices())


@functools.cache
def measured(backend: str, few: int, dtype: str) -> dict:
    """Results and gradients of all cases that a backend takes, as one program."""
    made = {case: case.make(few, jnp.dtype(dtype)) for case in CASES}
    place = PLACES.get(backend, CPU)
    taken = [case for case in CASES if BACKENDS[backend].refuses(Inputs(**made[case]), place) is None]

    def compute(learned):
        def one(case):
            def total(arrays):
                out = COMPUTE[backend](Inputs(**made[case] | arrays))
                return (out.astype(jnp.float32) * COTANGENT.astype(np.float32)).sum(), out

            (_, out), gradients = jax.value_and_grad(total, has_aux=True)(learned[case])
            return [out, *(gradients[name] for name in ("query", "key", "value", "bias") if name in gradients)]

        return [one(case) for case in taken]

    learned = {case: {n: made[case][n] for n in ("query", "key", "value", "bias") if n in made[case]} for case in taken}
    with jax.default_matmul_precision("highest"):
        results = jax.device_get(
            jax.jit(lambda learned: compute(dict(zip(taken, learned, strict=True))))(list(learned.values()))
        )
    return {case: (made[case], result) for case, result in zip(taken, results, strict=True)}


MATRIX = [
    pytest.param(
        backend,
        case,
        few,
        dtype,
        id=f"{backend}-{case.sees}-{'cross' if case.cross else 'self'}-{'grouped' if few < H else 'heads'}-{dtype}",
        marks=[
            pytest.mark.skipif(backend == "cudnn" and not has_gpu(), reason="needs an NVIDIA GPU"),
            # Of heads with keys of their own the default tier runs the definition's backend: they are groups of one.
            *([pytest.mark.slow] if dtype == "bfloat16" or (few == H and backend != "xla") else []),
        ],
    )
    for backend in COMPUTE
    for case in CASES
    for few in (H, 2)
    for dtype in ("float32", "bfloat16")
    if not (backend == "cudnn" and (dtype == "float32" or case.sees in ("bias", "cap")))
    and not (backend == "block_diagonal" and (case.cross or case.sees in ("bias", "array", "cap")))
    and not (
        backend == "splash"
        and (case.sees in ("window", "array", "both ways", "bias") or (case.cross and case.sees in ("causal", "cap")))
    )
]


@pytest.mark.parametrize("backend, case, few, dtype", MATRIX)
def test_every_backend_is_the_definition_forward_and_backward(backend, case, few, dtype):
    made, results = measured(backend, few, dtype)[case]
    expected = definition(**made)
    blind, unseen = (~x.any(axis=-1) for x in (expected[0], expected[3]))
    untouched = {"result": blind, "query": blind, "key": unseen, "value": unseen, "bias": blind}
    for (name, empty), ours, right in zip(untouched.items(), results, expected, strict=False):
        off = np.abs(np.asarray(ours, np.float64) - right).max() / np.abs(right).max()
        assert off < (2e-6 if dtype == "float32" else 2e-2), name
        assert not np.any(np.asarray(ours)[empty]), f"{name} of what sees nothing, or is not seen, is not zero"


def test_every_backend_that_can_be_tested_here_is():
    assert set(COMPUTE) == set(BACKENDS)
    assert {param.values[0] for param in MATRIX} == set(BACKENDS)


def test_windows_hold_every_example_once_and_whole_and_waste_little():
    generator, sizes = np.random.default_rng(0), (20, 40, 100)
    segments = np.zeros((8, 100), np.int32)
    for row, longest in zip(segments[1:], (3, 9, 20, 33, 60, 100, 100), strict=True):
        at, number = generator.integers(4), 0
        while at < 100:
            tokens, number = generator.integers(1, longest + 1), number + 1
            row[at : at + tokens] = number
            at += tokens + generator.integers(3)
    examples = {
        (row, number): np.flatnonzero(segments[row] == number) for row, number in np.argwhere(np.ones((8, 101)))
    }
    examples = {name: at for name, at in examples.items() if name[1] and len(at)}
    spans, counts = jax.device_get(jax.jit(functools.partial(block_diagonal._windows, sizes))(segments))
    held = []
    for size, of_size, count in zip(sizes, spans, counts, strict=True):
        for first, end in of_size[:count]:
            row, inside = first // 100, np.unique(segments.ravel()[first:end])
            assert (end - 1) // 100 == row and end - first <= size
            held += [(row, number) for number in inside if number]
            in_it = [examples[row, number] for number in inside if number]
            assert sum(map(len, in_it)) == (segments.ravel()[first:end] > 0).sum()
            assert len(in_it[0]) > max((s for s in sizes if s < size), default=0)  # no smaller window would do
    assert sorted(held) == sorted(examples)
    assert counts.sum() < len(examples) / 2  # short ones share windows


# Which one. -----------------------------------------------------------------------------------------------


def inputs(length=256, keys=None, heads=4, few=4, width=64, dtype="bfloat16", rows=8, **more):
    keys = keys or length
    shape = jax.ShapeDtypeStruct
    arrays = [(rows, heads, length, width), (rows, few, keys, width), (rows, few, keys, width)]
    segments = shape((rows, length), jnp.int32), shape((rows, keys), jnp.int32)
    return Inputs(*(shape(x, jnp.dtype(dtype)) for x in arrays), *segments, **more)


def times(length=256, rows=8):
    return dict.fromkeys(("query_times", "key_times"), jax.ShapeDtypeStruct((rows, length), jnp.int32))


WINDOW = jnp.asarray(2)
BIAS = jax.ShapeDtypeStruct((8, 4, 256, 256), jnp.float32)


@pytest.fixture
def cudnn_is_there(monkeypatch):
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)


@pytest.mark.parametrize(
    "given, place, chosen, refused",
    [
        (inputs(), GPU, "cudnn", {}),
        (inputs(few=2, **times()), GPU, "cudnn", {}),
        (inputs(length=197), GPU, "cudnn", {}),
        (inputs(window=WINDOW, **times()), GPU, "cudnn", {}),
        (inputs(soft_cap=50.0), GPU, "xla", {"cudnn": "does not support a soft cap"}),
        (inputs(bias=BIAS), GPU, "xla", {"cudnn": "round the bias", "chunked": "8.0 MiB, less than"}),
        (inputs(dtype="float32"), GPU, "xla", {"cudnn": "in 16 bits, not in float32"}),
        (inputs(width=36), GPU, "xla", {"cudnn": "multiple of 8, but got 36"}),
        (inputs(), Place("gpu", "Tesla T4"), "xla", {"cudnn": "compute capability 8.0"}),
        (inputs(), GPU._replace(context=2), "xla", {"cudnn": "tokens of a row are divided"}),
        (inputs(), GPU._replace(rows=3), "xla", {"cudnn": "8 rows do not divide among 3"}),
        (inputs(few=2), GPU._replace(heads=4), "xla", {"cudnn": "2 heads of keys do not divide among 4"}),
        (inputs(), TPU, "splash", {}),
        (inputs(dtype="float32", few=2), TPU._replace(rows=8, heads=2), "splash", {}),
        (inputs(in_order=True, **times()), TPU, "splash", {}),
        (inputs(**times()), TPU, "xla", {"splash": "supports causality only for tokens in order"}),
        (inputs(in_order=True, window=2, **times()), TPU, "xla", {"splash": "causality only for"}),
        (inputs(window=2, bidirectional=True, **times()), TPU, "xla", {"splash": "causality only for"}),
        (inputs(soft_cap=50.0), TPU, "splash", {}),
        (inputs(bias=BIAS), TPU, "xla", {"splash": "does not support a bias"}),
        (inputs(length=6), TPU, "xla", {"splash": "pad 6 x 6 tokens to multiples of 128"}),
        (inputs(), TPU._replace(context=2), "xla", {"splash": "tokens of a row are divided"}),
        (inputs(length=4096, dtype="float32"), CPU, "chunked", {}),
        (inputs(length=4096), CPU._replace(rows=8, heads=4), "chunked", {}),
        (inputs(length=4096), CPU._replace(rows=8, heads=4, context=2), "xla", {"chunked": "32.0 MiB"}),
        (inputs(length=4096, bias=BIAS), TPU, "chunked", {"splash": "does not support a bias"}),
        (inputs(), CPU, "xla", {"chunked": "less than"}),
        (inputs(length=1024, packed=True), CPU, "block_diagonal", {}),
        (inputs(length=1024, packed=True, few=2, window=2, **times(1024)), CPU, "block_diagonal", {}),
        (inputs(length=1024, packed=True, soft_cap=9.0), CPU, "chunked", {"block_diagonal": "support a soft cap"}),
        (
            inputs(length=1024, packed=True, window=WINDOW, **times(1024)),
            CPU,
            "chunked",
            {"block_diagonal": "a window that differs between layers"},
        ),
        (inputs(packed=True), CPU, "xla", {"block_diagonal": "its rows have 256 tokens, less than"}),
        (inputs(length=4096, packed=True), CPU, "chunked", {"block_diagonal": "4096 tokens, not less than"}),
        (inputs(length=1024, rows=1), CPU, "xla", {"block_diagonal": "of the same tokens"}),
        (inputs(length=1024, packed=True, bias=BIAS), CPU, "chunked", {"block_diagonal": "does not support a bias"}),
        (inputs(length=1024, packed=True), CPU._replace(rows=8), "xla", {"block_diagonal": "are divided among"}),
    ],
)
def test_the_first_that_can_and_pays_is_chosen_and_the_others_reasons_are_kept(
    given, place, chosen, refused, cudnn_is_there
):
    decision = decide(given, place, Selection(), "here")
    assert decision.backend == chosen
    reasons = dict(decision.refused)
    assert all(reason in reasons[name] for name, reason in refused.items()), reasons
    assert list(BACKENDS)[-1] == "xla" and set(reasons) >= set(refused)


def test_cudnn_that_is_not_installed_is_a_reason():
    assert dict(decide(inputs(), GPU, Selection(), "here").refused)["cudnn"] == "cuDNN is not detected"


@pytest.mark.parametrize("sees", ["causal", "array"])
def test_cudnns_kernels_stand_in_the_program_for_a_gpu_forward_and_backward(cudnn_is_there, sees):
    """Lowered without a GPU; that they are right is tested where there is one."""
    made = {n: x for n, x in Case(False, sees).make(2, jnp.bfloat16).items() if n != "in_order"}
    learned = {n: made.pop(n) for n in ("query", "key", "value")}
    total = jax.jit(jax.grad(lambda learned, made: cudnn_.cudnn(Inputs(**learned, **made)).astype(jnp.float32).sum()))
    program = total.trace(learned, made).lower(lowering_platforms=("cuda",)).as_text()
    assert program.count("@__cudnn$fmhaScaleBiasSoftmax(") == 1
    assert program.count("@__cudnn$fmhaScaleBiasSoftmaxBackward(") == 1


def test_who_asks_by_name_gets_it_or_is_told():
    assert decide(inputs(), CPU, Selection("chunked", strict=True), "here").backend == "chunked"
    decision = decide(inputs(), CPU, Selection("cudnn"), "here")
    assert decision.backend == "xla" and dict(decision.refused)["cudnn"] == "it is for NVIDIA GPUs, not for a cpu"


def test_every_decision_is_reported_in_order():
    arrays = {n: x for n, x in Case(True, "full").make(H, np.float32).items()}
    with decisions() as made:
        jax.eval_shape(lambda: attention(**arrays))
        jax.eval_shape(lambda: attention(**arrays, backend=Selection("chunked"), where="there"))
        jax.eval_shape(lambda: attention(**arrays))
    assert [(one.where, one.backend) for one in made] == [
        ("attention", "xla"),
        ("there", "chunked"),
        ("attention", "xla"),
    ]
    assert made[0].shape == (3, H, T, S)


# In a run. ------------------------------------------------------------------------------------------------


def decided(**model):
    from mmjax.parallel.mesh import make_mesh
    from mmjax.train.attention import decided
    from mmjax.train.build import build_layout, build_model
    from mmjax.train.step import unboxed

    config = tiny()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **model))
    layout, built = build_layout(config), build_model(config.model)
    free = with_backend(built, "auto")
    params = unboxed(jax.eval_shape(lambda: free.init(jax.random.key(0), layout.empty(1))["params"]))
    return decided(config, built, params, layout, make_mesh(devices=jax.devices()[:1]))


def test_a_part_of_a_built_model_has_its_backend_without_any_context():
    from mmjax.train.build import build_model

    built = build_model(dataclasses.replace(tiny().model, attention="chunked"))
    text = Stream(*(np.ones((2, 8), np.int32) for _ in range(3)))
    with decisions() as made:
        jax.eval_shape(lambda: built.encoders["text"].init(jax.random.key(0), text))
    assert {one.backend for one in made} == {"chunked"}


def test_every_call_of_a_model_is_decided_and_said_in_a_line():
    from mmjax.train.attention import lines

    made = decided()
    assert [one.where for one in made] == ["speech", "image", "text", "fusion self_attention", "fusion cross_attention"]
    assert all(one.backend == "xla" for one in made)
    # Speech: 8 rows, 2 heads, 328 hops / 4; pictures: 8 x 8 patches, each row folded into its two.
    assert made[0].shape == (8, 2, 82, 82) and made[1].shape == (16, 2, 64, 64)
    assert lines(decided(attention="xla")) == [
        "attention xla: speech 8x2x82x82, image 16x2x64x64, text 8x2x16x16, fusion self_attention 8x2x6x6, "
        "fusion cross_attention 8x2x6x226"
    ]
    (line,) = lines(decided(attention="splash"))[:1]
    assert (
        line.startswith("attention xla: speech") and "(splash: it is for TPUs, not for a cpu; block_diagonal: " in line
    )


@pytest.mark.parametrize("fusion", ["CrossAttention", "Concat"])
def test_windows_are_for_towers_and_never_for_what_a_fusion_has_joined(fusion):
    """There a segment's tokens stand in several places of a row."""
    sizes = dict(layers=1, width=16, heads=2)
    fusions = {"CrossAttention": tiny().model.fusion, "Concat": c.Concat(**sizes, mlp=16)}
    chosen = {one.where: one.backend for one in decided(attention="block_diagonal", fusion=fusions[fusion])}
    assert {where for where, backend in chosen.items() if backend == "block_diagonal"} == {"speech", "image", "text"}
    assert {where.split()[0] for where, backend in chosen.items() if backend == "xla"} == {"fusion"}


def test_strict_stops_before_anything_is_compiled_and_names_the_call_and_the_reason():
    message = (
        r"model.attention: cudnn cannot compute the attention of speech \(8 x 2 x 82 x 82 scores\): it is for NVIDIA"
    )
    with pytest.raises(UserError, match=message):
        decided(attention="cudnn", strict_attention=True)
    assert {one.backend for one in decided(attention="chunked", strict_attention=True)} == {"chunked"}
    with pytest.raises(UserError, match="strict_attention needs a backend in model.attention"):
        check_config(c.override(tiny(), ["--model.strict-attention", "true"]))


ON_8_DEVICES = """
import json, sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
assert jax.device_count() == 8  # before conftest, which another import brings, asks for one
from test_attention_backends import COMPUTE, Inputs
from mmjax.parallel.mesh import make_mesh, within

generator = np.random.default_rng(0)
query, key, value = generator.standard_normal((3, 8, 8, 256, 8)).astype(np.float32)
segments = generator.integers(0, 4, (8, 1)) * (np.arange(256) < 200) + np.arange(256) // 100
segments = segments.astype(np.int32)
for backend, axes in json.loads(sys.argv[1]):
    def total(query, key, value, segments):
        return (COMPUTE[backend](Inputs(query, key, value, segments, segments)) ** 2).sum()

    def on(mesh):
        tokens = P(("data", "fsdp"), "context"), P(("data", "fsdp"), "tensor", "context")
        arrays = [jax.device_put(x, NamedSharding(mesh, tokens[x.ndim == 4])) for x in (query, key, value, segments)]
        step = jax.jit(within(mesh, jax.value_and_grad(total, (0, 1, 2)))).lower(*arrays).compile()
        return jax.tree.leaves(jax.device_get(step(*arrays))), step.as_text()

    one, _ = on(make_mesh(devices=jax.devices()[:1]))
    other, program = on(make_mesh(**axes))
    off = max(np.abs(a - b).max() / np.abs(a).max() for a, b in zip(one, other))
    print("found", off, sum(program.count(f" {kind}(") for kind in ("all-gather", "all-to-all", "collective-permute")))
"""
MESHES = [
    ("splash", {"data": 2, "tensor": 4}),
    ("splash", {"fsdp": 8}),
    ("chunked", {"data": 2, "tensor": 4}),
    ("chunked", {"data": 2, "context": 4}),
]


@pytest.mark.slow
def test_on_8_devices_every_backend_gives_what_it_gives_on_one():
    """Rows and heads are computed where they are; only along context does a token travel."""
    process = subprocess.run(
        [sys.executable, "-c", ON_8_DEVICES, json.dumps(MESHES)],
        env=os.environ | simulated(8) | {"PYTHONPATH": os.pathsep.join([os.getcwd(), os.path.dirname(__file__)])},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    found = [line.split()[1:] for line in process.stdout.splitlines() if line.startswith("found")]
    assert len(found) == len(MESHES)
    for (backend, axes), (off, moved) in zip(MESHES, found, strict=True):
        assert float(off) < 1e-5, (backend, axes)
        assert int(moved) == 0 or "context" in axes, (backend, axes)
