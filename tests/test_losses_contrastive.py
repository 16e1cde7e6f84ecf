"""Contrastive losses against the papers' formulas, and on 8 devices against 1."""

import json
import math
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.losses import contrastive
from mmjax.parallel.runtime import simulated
from mmjax.stream import Stream
from mmjax.tasks import Contrast, Encoded

ROWS, SLOTS, TOKENS, WIDTH = 8, 3, 7, 4


def stream(features, segments):
    segments = jnp.asarray(segments, jnp.int32)
    return Stream(jnp.asarray(features, jnp.float32), segments, jnp.zeros_like(segments))


def batch(seed=0):
    """Speech, images and slots: up to three examples in a row, each with either, both or none of the modalities."""
    generator = np.random.default_rng(seed)
    slots = np.arange(1, SLOTS + 1) * (np.arange(1, SLOTS + 1) <= generator.integers(1, SLOTS + 2, (ROWS, 1)))
    streams = []
    for _ in range(2):
        has = generator.random((ROWS, SLOTS)) < 0.9
        segments = np.repeat(np.where(has, slots, 0), (2, 4, 1), axis=1)
        features = generator.normal(size=(ROWS, TOKENS, WIDTH))
        features[segments == 0] = np.nan
        streams.append(stream(features, segments))
    return *streams, stream(np.full((ROWS, SLOTS), np.nan), slots)


TASK = Contrast(between=("speech", "image"), outputs=5, scale=10.0, bias=-10.0)
RULES = ["sigmoid", "softmax"]


def encoded(speech, image, examples):
    return Encoded({"examples": examples}, {"speech": speech, "image": image}, {}, None, {})


def pairs_of(params, *streams, task=TASK):
    """The pairs of vectors that the loss compares."""
    return task.apply({"params": params}, encoded(*streams)).prediction


def by_hand(params, speech, image, examples):
    """The pairs' unit vectors in float64, example by example."""
    vectors = ([], [])
    for row, slot in zip(*np.nonzero(examples.segments), strict=True):
        number, found = examples.segments[row, slot], []
        for side, tokens in (("first", speech), ("second", image)):
            own = np.asarray(tokens.features, np.float64)[row][np.asarray(tokens.segments)[row] == number]
            if len(own):
                x = own.mean(0) @ np.asarray(params[side]["kernel"], np.float64)
                found.append(x / np.linalg.norm(x))
        if len(found) == 2:
            vectors[0].append(found[0])
            vectors[1].append(found[1])
    return np.array(vectors[0]), np.array(vectors[1])


def formula(rule, logits):
    """The papers' pseudo-code, but for the division by the batch."""
    if rule == "sigmoid":
        signs = 2 * np.eye(len(logits)) - 1
        return np.log1p(np.exp(-signs * logits)).sum()
    both = (np.log(np.exp(x).sum(1)) - np.diag(x) for x in (logits, logits.T))
    return sum(x.sum() for x in both) / 2


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(np.asarray, nn.unbox(jax.jit(TASK.init)(jax.random.key(0), encoded(*batch()))["params"]))


@pytest.mark.parametrize("chunks", [1, 8])
@pytest.mark.parametrize("rule", RULES)
def test_contrastive_losses_and_gradients_equal_the_formulas(params, rule, chunks):
    def loss(params):
        measured = contrastive(pairs_of(params, *batch()), rule, chunks)
        return measured["loss"][0], measured

    (value, measured), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    def exact(params):
        a, b = by_hand(params, *batch())
        return np.exp(float(params["log_scale"])) * a @ b.T + float(params["bias"])

    logits = exact(params)
    assert 8 <= len(logits) < np.count_nonzero(batch()[2].segments)
    np.testing.assert_allclose(value, formula(rule, logits), rtol=1e-5)
    assert measured["loss"][1] == len(logits)
    found = (logits.argmax(1) == np.arange(len(logits))).sum() + (logits.argmax(0) == np.arange(len(logits))).sum()
    assert tuple(map(int, measured["accuracy"])) == (found, 2 * len(logits))

    jax.tree.map(lambda g: np.testing.assert_equal(np.isfinite(g), True), gradient)
    # The bias has no effect on a softmax: Adam would scale the rounding errors of its gradient up to whole steps.
    assert (gradient["bias"] == 0) == (rule == "softmax")
    for path in (("log_scale",), ("bias",), ("first", "kernel"), ("second", "kernel")):
        turned, place = jax.tree.map(lambda x: np.asarray(x, np.float64), params), (1, 2) if len(path) == 2 else ()
        slope, leaf = 0.0, turned
        for key in path[:-1]:
            leaf = leaf[key]
        for step in (1e-5, -1e-5):
            moved = leaf[path[-1]].copy()
            moved[place] += step
            slope += np.sign(step) * formula(rule, exact(_with(turned, path, moved))) / 2e-5
        measured_slope = gradient
        for key in path:
            measured_slope = measured_slope[key]
        np.testing.assert_allclose(measured_slope[place], slope, rtol=1e-4, atol=1e-4)


def _with(tree, path, value):
    return tree | {path[0]: value if len(path) == 1 else _with(tree[path[0]], path[1:], value)}


def test_the_scale_of_clip_is_limited_to_100():
    task = Contrast(between=("speech", "image"), outputs=5, rule="softmax", scale=1e6, bias=0.0, limit=100.0)
    params = nn.unbox(jax.jit(task.init)(jax.random.key(0), encoded(*batch()))["params"])
    pairs = pairs_of(params, *batch(), task=task)
    lengths = np.linalg.norm(pairs.features[..., 0, :], axis=-1)
    np.testing.assert_allclose(lengths[pairs.segments > 0], 100.0, rtol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_a_batch_without_pairs_is_zero_and_finite(params, rule):
    speech, image, examples = batch()
    image = image._replace(segments=np.zeros_like(image.segments))

    def loss(params):
        return contrastive(pairs_of(params, speech, image, examples), rule)["loss"]

    value, gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert value == (0, 0)
    assert not any(np.any(g) for g in jax.tree.leaves(gradients))


def test_an_example_that_lacks_a_modality_changes_nothing(params):
    """It has the same losses and gradients as if it were not there."""
    speech, image, examples = batch()
    pairs = pairs_of(params, speech, image, examples)
    both = jnp.asarray(pairs.segments)
    thinned = [
        s._replace(segments=jnp.where((s.segments[:, :, None] == both[:, None]).any(-1), s.segments, 0))
        for s in (speech, image, examples)
    ]
    assert np.count_nonzero(thinned[2].segments) < np.count_nonzero(examples.segments)
    loss = jax.jit(jax.value_and_grad(lambda p, *s: contrastive(pairs_of(p, *s))["loss"][0]))
    one, other = loss(params, speech, image, examples), loss(params, *thinned)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def on_8_devices():
    """What `divided` gives for each rule, in a process of 8 devices."""
    environment = os.environ | simulated(8) | {"JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("rule", RULES)
def test_8_devices_equal_1_and_no_device_gathers_the_embeddings(on_8_devices, rule):
    result = on_8_devices[rule]
    assert result["devices"] == 8 and result["difference"] <= 1e-6
    assert result["sent_to_neighbours"] > 0 and result["gathered"] == 0
    # Not all pairs, nor all vectors of one modality, are ever on one device.
    assert result["largest_array"] < ROWS * SLOTS * TASK.outputs < (ROWS * SLOTS) ** 2


def divided(rule: str) -> dict:
    """Loss and gradients with rows divided among 8 devices against 1, and what the devices send each other."""
    import re

    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    data = batch()
    params = nn.unbox(jax.jit(TASK.init)(jax.random.key(0), encoded(*data))["params"])

    def compute(params, data):
        return jax.value_and_grad(lambda p: contrastive(pairs_of(p, *data), rule, chunks=8)["loss"][0])(params)

    with jax.default_matmul_precision("highest"):
        one = jax.jit(compute)(params, data)
        mesh = jax.make_mesh((8,), ("data",))
        rows, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
        compiled = jax.jit(compute, in_shardings=(everywhere, rows)).lower(params, data).compile()
        eight = compiled(jax.device_put(params, everywhere), jax.device_put(data, rows))
    text = compiled.as_text()
    relative = lambda a, b: float(jnp.abs(np.asarray(a) - np.asarray(b)).max() / max(1.0, np.abs(a).max()))  # noqa: E731
    return {
        "devices": jax.device_count(),
        "difference": max(jax.tree.leaves(jax.tree.map(relative, one, eight))),
        "sent_to_neighbours": len(re.findall(r"= \S+ collective-permute", text)),
        "largest_array": max(math.prod(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", text)),
        "gathered": len(re.findall(r"all-gather", text)),
    }


if __name__ == "__main__":
    print(json.dumps({rule: divided(rule) for rule in RULES}))
