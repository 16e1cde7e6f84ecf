"""What a run keeps in 16 bits: parameters, gradients, momentum."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny
from jax.flatten_util import ravel_pytree

from mmjax import config as c
from mmjax.check import Subject
from mmjax.errors import UserError
from mmjax.parallel.mesh import make_mesh
from mmjax.parallel.runtime import simulated
from mmjax.run import Run
from mmjax.train.build import build_model
from mmjax.train.initial import load_initial
from mmjax.train.program import begin, jitted_step
from mmjax.train.step import LossAndGradients, cast, rounded_like
from mmjax.train.validate import check_config

pytestmark = pytest.mark.slow

HALF = {"parameters": "bfloat16", "gradients": "bfloat16", "moments": "bfloat16"}


def with_dtypes(rule=None, **dtypes):
    config = tiny()
    return dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, rule=rule or c.AdamW(), ema=0.9, **dtypes)
    )


@pytest.fixture(scope="module")
def subject(source):
    return Subject(tiny())


def program(config, subject):
    """The train step, and the abstract and the real state before it."""
    mesh = make_mesh(devices=jax.devices()[:1])
    model = build_model(config.model)
    begun = begin(config, model, subject.layout, mesh)
    return jitted_step(config, model, begun), begun.abstract, begun.initialise


def named(tree):
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def dtypes(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree) if leaf.ndim}


def test_rounding_at_random_keeps_the_expectation():
    """Gupta et al. 2015: between two neighbours, to the upper one as often as the number is near it."""
    exact = np.float32([1.0, -2.5, 0.0, 3e-20, -1e30]).astype(jnp.bfloat16).astype(np.float32)
    between = np.float32([1.0 + 1 / 1024, -(1.0 + 3 / 512), 1e-3])
    many = jnp.asarray(np.concatenate([exact, between]))[:, None] * jnp.ones((1, 40_000))
    kept = {"a": jnp.zeros(many.shape, jnp.bfloat16), "b": jnp.zeros(3)}
    new = {"a": many, "b": jnp.float32([0.1, 0.2, 0.3])}
    rounded = jax.jit(rounded_like)(kept, new, jax.random.key(0))
    np.testing.assert_array_equal(rounded["b"], new["b"])  # what is kept in 32 bits is not touched
    values = np.asarray(rounded["a"].astype(jnp.float32))
    np.testing.assert_array_equal(values[:5], np.asarray(many)[:5])
    for row, wanted in zip(values[5:], between, strict=True):
        neighbours = np.unique(row)
        gap = neighbours[1] - neighbours[0]
        assert len(neighbours) == 2 and gap <= abs(wanted) / 128 and neighbours[0] < wanted < neighbours[1]
        assert abs(row.mean() - wanted) < 4 * 0.5 * gap / len(row) ** 0.5
    again = rounded_like(kept, new, jax.random.key(0))
    np.testing.assert_array_equal(rounded["a"], again["a"])
    assert (rounded["a"] != rounded_like(kept, new, jax.random.key(1))["a"]).any()


def test_steps_below_the_last_digit_count_on_average():
    """1 less 1,000 steps of 1e-4: rounded to the nearest, a parameter in bfloat16 would stay where it is."""
    kept = jnp.ones(512, jnp.bfloat16)
    assert (kept.astype(jnp.float32) - 1e-4).astype(jnp.bfloat16)[0] == 1

    def step(kept, key):
        return rounded_like(kept, kept.astype(jnp.float32) - 1e-4, key), None

    after, _ = jax.lax.scan(step, kept, jax.random.split(jax.random.key(0), 1000))
    assert float(after.astype(jnp.float32).mean()) == pytest.approx(0.9, abs=2e-3)


@pytest.mark.parametrize("rule", [c.AdamW(), c.Muon(), c.Lion(), c.SGD()], ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("chosen, kept", [({}, "float32"), (HALF, "bfloat16")])
def test_what_is_kept_has_the_chosen_dtype(subject, rule, chosen, kept):
    step, abstract, _ = program(with_dtypes(rule, **chosen), subject)
    after, _ = jax.eval_shape(step, abstract, subject.batch)
    for state in (abstract, after):
        assert dtypes(state.params) == {kept} and dtypes(state.average) == {"float32"}
        moments = [leaf for path, leaf in named(state.optimizer) if ".mu" in path or ".trace" in path]
        assert len(moments) == len(jax.tree.leaves(state.params)) and dtypes(moments) == {kept}
        squares = [leaf for path, leaf in named(state.optimizer) if ".nu" in path]
        assert dtypes(squares) <= {"float32"} and bool(squares) == isinstance(rule, (c.AdamW, c.Muon))


def test_gradients_are_kept_and_summed_in_the_chosen_dtype(subject):
    model = build_model(tiny().model)
    params = jax.jit(lambda: model.init(jax.random.key(0), subject.batch)["params"])()

    def gradients(count, dtype):
        run = jax.jit(LossAndGradients(model, count, dtype=dtype))
        return run(params, subject.batch, jax.random.key(0))[1]

    exact = gradients(1, "float32")
    for count in (1, 4):
        found = gradients(count, "bfloat16")
        assert dtypes(found) == {"bfloat16"}
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
            scale = float(jnp.abs(other).max())
            np.testing.assert_allclose(one.astype(jnp.float32), other, atol=scale * count / 256 + 1e-7)


def test_what_is_used_at_every_step_of_a_loop_sums_its_gradients_in_32_bits(source):
    """A recurrent layer, a joint network, a vocabulary: hundreds of additions in 16 bits would stall far from the sum."""
    speech = c.BiLSTM(layers=1, width=16)
    model = dataclasses.replace(
        tiny().model,
        encoders={**tiny().model.encoders, "speech": speech},
        tasks={"transcript": c.Transducer(outputs=128, width=16)},
    )
    config = dataclasses.replace(with_dtypes(c.SGD(), parameters="bfloat16"), model=model)
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, clip=None))
    subject = Subject(config)
    step, _, initialise = program(config, subject)

    def gradients(dtype):
        """Of the parameters in bfloat16, computed in `dtype`: the momentum after one step."""
        state = initialise()
        after, _ = step(state._replace(params=cast(state.params, dtype)), subject.batch)
        return {name: leaf for name, leaf in named(after.optimizer) if ".trace" in name}

    exact, found = gradients("float32"), gradients("bfloat16")
    counted = [name for name, leaf in exact.items() if "encoders_speech" in name or "tasks_transcript" in name]
    assert any("recurrent" in name for name in counted) and len(counted) > 8
    for name in counted:
        off = jnp.linalg.norm((found[name] - exact[name]).ravel()) / jnp.linalg.norm(exact[name].ravel())
        assert off < 1e-3, (name, float(off))


def test_momentum_in_16_bits_comes_to_the_gradient(subject):
    """Lion forgets 1 % a step: rounded to the nearest, a momentum in bfloat16 stops before it is there."""
    config = with_dtypes(c.Lion(weight_decay=0.0), moments="bfloat16")
    still = dataclasses.replace(config.optimizer, schedule=c.Constant(peak=0.0, warmup=0), clip=None, ema=None)
    model = build_model(config.model)
    config = dataclasses.replace(config, optimizer=still)
    step, _, initialise = program(config, subject)
    state = initialise()
    gradients = jax.jit(lambda p: LossAndGradients(model)(p, subject.batch, jax.random.key(0))[1])
    exact, _ = ravel_pytree(gradients(state.params))
    for _ in range(300):
        state, _ = step(state, subject.batch)
    momentum, _ = ravel_pytree(cast([leaf for path, leaf in named(state.optimizer) if ".mu" in path], jnp.float32))
    assert momentum @ exact / (exact @ exact) == pytest.approx(1 - 0.99**300, abs=0.01)


def test_the_loss_falls_as_in_32_bits(subject):
    losses = []
    for config in (with_dtypes(), with_dtypes(**HALF)):
        step, _, initialise = program(config, subject)
        state, found = initialise(), []
        for _ in range(30):
            state, metrics = step(state, subject.batch)
            found.append(float(metrics["loss"]))
        assert step._cache_size() == 1 and int(state.skipped) == 0
        losses.append(found)
    whole, half = np.array(losses)
    assert whole[-1] < 0.8 * whole[0]
    assert 0 < np.abs(half - whole).max() < 0.05 * whole[0]


def test_what_a_run_starts_from_is_kept_in_its_own_dtypes(subject, run):
    config = dataclasses.replace(with_dtypes(**HALF), initial={"encoders.speech": str(run)})
    begun = begin(config, build_model(config.model), subject.layout, make_mesh(devices=jax.devices()[:1]))
    state = load_initial(config, begun.initialise(), begun.specs, subject.source.tokenizer)
    assert dtypes(state.params) == {"bfloat16"} and dtypes(state.average) == {"float32"}
    wanted = jax.tree.map(lambda x: jnp.asarray(x).astype(jnp.bfloat16), Run(run).params["encoders_speech"])
    jax.tree.map(np.testing.assert_array_equal, state.params["encoders_speech"], wanted)
    jax.tree.map(np.testing.assert_array_equal, state.average["encoders_speech"], cast(wanted, jnp.float32))


ON_8_DEVICES = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from mmjax.parallel.mesh import make_mesh
from mmjax.train.step import rounded_like
x = jax.random.normal(jax.random.key(0), (64, 24))
run = jax.jit(lambda x: rounded_like(jnp.zeros(x.shape, jnp.bfloat16), x, jax.random.key(1)))
divided = run(jax.device_put(x, NamedSharding(make_mesh(data=2, fsdp=4), P("fsdp", "data"))))
print(len(divided.sharding.device_set), (divided == run(x)).all())
"""


def test_rounding_does_not_depend_on_the_mesh():
    command = [sys.executable, "-c", ON_8_DEVICES]
    process = subprocess.run(command, env=os.environ | simulated(8), capture_output=True, text=True, timeout=300)
    assert process.stdout.split() == ["8", "True"], process.stderr[-3000:]


def test_what_has_no_momentum_is_asked_for_none():
    with pytest.raises(UserError, match="optimizer.moments=bfloat16, but Adafactor has no first moments"):
        check_config(with_dtypes(c.Adafactor(), moments="bfloat16"))
