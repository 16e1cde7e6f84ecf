"""Groups of parameters: frozen, later, at another rate, and what a frozen part no longer costs."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import tiny

from mmjax import config as c
from mmjax.check import Subject
from mmjax.errors import UserError
from mmjax.models.roles import Spec, by_path, matches
from mmjax.parallel.mesh import make_mesh
from mmjax.train import report
from mmjax.train.groups import grouped as grouped_by
from mmjax.train.groups import scaled
from mmjax.train.program import begin, jitted_step


@pytest.fixture(scope="module")
def subject(source):
    return Subject(tiny())


def grouped(groups, **changes):
    optimizer = dataclasses.replace(tiny().optimizer, groups=groups, schedule=c.Constant(peak=1e-2), **changes)
    return dataclasses.replace(tiny(), optimizer=optimizer)


def begun(config, subject):
    return begin(config, subject.model, subject.layout, make_mesh(devices=jax.devices()[:1]))


def moved(config, subject, steps=2):
    """By path, how far each parameter is from its first value after each step."""
    start = begun(config, subject)
    step, state = jitted_step(config, subject.model, start), start.initialise()
    first, found = jax.tree.map(np.asarray, state.params), []
    for _ in range(steps):
        state, _ = step(state, subject.batch)
        found.append(by_path(jax.tree.map(lambda a, b: np.asarray(a, np.float32) - b, state.params, first)))
    return found, state


def test_patterns():
    for pattern, path, selected in (
        ("encoders.speech.**", "encoders.speech.layers.attention.qkv.kernel", True),
        ("encoders.speech.**", "encoders.speech2.norm.bias", False),
        ("**.bias", "fusion.norm.bias", True),
        ("encoders.*.layers.**", "encoders.text.layers.mlp.up.kernel", True),
        ("encoders.speech", "encoders.speech.layers.attention.qkv.kernel", True),
        ("tasks.*.kernel", "tasks.answer.logits.kernel", False),
        ("**.attention", "encoders.speech.layers.attention.qkv.kernel", True),
        ("**", "fusion.queries", True),
    ):
        assert matches(pattern, path) == selected, (pattern, path)


def test_frozen_parameters_stay_to_the_bit_and_keep_no_moments(subject):
    config = grouped({"encoders.speech.**": c.Group(frozen=True, dtype="bfloat16"), "**.norm.*": c.Group(frozen=True)})
    (_, last), state = moved(config, subject)
    for path, change in last.items():
        still = path.startswith("encoders.speech.") or ".norm." in path
        if path.startswith("encoders.speech."):
            continue  # compared below: the first value was kept in bfloat16
        assert (not change.any()) if still else change.any(), path
    speech = jax.tree.leaves(state.params["encoders_speech"])
    assert all(leaf.dtype == "bfloat16" for leaf in speech)
    kept = begun(config, subject).initialise().params["encoders_speech"]
    assert all(np.array_equal(a, b) for a, b in zip(speech, jax.tree.leaves(kept), strict=True))
    moments = jax.tree_util.tree_leaves_with_path(state.optimizer)
    assert not [path for path, _ in moments if "encoders_speech" in jax.tree_util.keystr(path)]


def test_nothing_is_computed_backwards_for_a_frozen_encoder(subject):
    params = begun(tiny(), subject).abstract.params
    forward = report.step_flops(subject.model, params, subject.layout, 8)
    every = begun(grouped({"encoders.speech.**": c.Group(frozen=True)}), subject)
    frozen = report.step_flops(subject.model, params, subject.layout, 8, True, every.groups)
    trained = report.step_flops(subject.model, params, subject.layout, 8, True)
    assert frozen["speech"] == forward["speech"] < trained["speech"] and frozen["image"] == trained["image"]


@pytest.mark.slow
def test_a_frozen_encoder_saves_time_and_memory_in_the_compiled_step(subject):
    def compiled(config):
        start = begun(config, subject)
        program = jitted_step(config, subject.model, start).lower(start.abstract, subject.batch).compile()
        return program.cost_analysis()["flops"], program.memory_analysis().temp_size_in_bytes

    (few, small), (many, large) = compiled(grouped({"encoders.speech.**": c.Group(frozen=True)})), compiled(grouped({}))
    assert few < many and small < large


@pytest.mark.slow
def test_rates_and_a_late_start(subject):
    config = grouped(
        {"fusion.**": c.Group(rate=0.1), "tasks.**": c.Group(frozen_until=1)}, rule=c.SGD(momentum=0.0), clip=None
    )
    (first, second), _ = moved(config, subject)
    (plain, _), _ = moved(grouped({}, rule=c.SGD(momentum=0.0), clip=None), subject)
    for path, change in first.items():
        if path.startswith("fusion."):
            np.testing.assert_allclose(change, 0.1 * plain[path], rtol=1e-3, atol=1e-7, err_msg=path)
        elif path.startswith("tasks."):
            assert not change.any() and second[path].any(), path


def test_rates_fall_with_the_depth_of_a_layer():
    spec = Spec("projection", ("layers", "embed", "mlp"), (-2,), (-1,), (3, 2, 2))
    group = {"a": c.Group(rate=0.5, decay_by_layer=0.5)}
    transform = scaled(group, {"a": spec})
    updates, _ = transform.update({"a": np.ones((3, 2, 2), np.float32)}, transform.init(None))
    np.testing.assert_allclose(updates["a"][:, 0, 0], [0.125, 0.25, 0.5])


def test_layers_thaw_one_after_the_other_the_last_one_first():
    """Embeddings are last, as in ULMFiT; another part with fewer layers has its own steps."""

    def spec(*shape):
        return Spec("projection", ("layers", "embed", "mlp")[-len(shape) :], (-2,), (-1,), shape)

    specs = {
        "encoders_text": {"embedding": spec(2, 2), "layers": spec(3, 2, 2)},
        "encoders_image": {"embedding": spec(2, 2), "layers": spec(2, 2, 2)},
        "fusion": {"kernel": spec(2, 2)},
    }
    late = c.Group(frozen_until=1, by_layer=2)
    groups = grouped_by({"encoders": late}, specs)
    optimizer = c.Optimizer(schedule=c.Constant(peak=0.1)).build(specs, 10, groups)
    params = jax.tree.map(lambda one: np.ones(one.shape, np.float32), specs)
    state, began = optimizer.init(params), {}
    for step in range(8):
        updates, state = optimizer.update(params, state, params)
        for path, change in by_path(updates).items():
            for layer, moved in enumerate(np.asarray(change).any((-2, -1)).reshape(-1)):
                if moved:
                    began.setdefault(f"{path}.{layer}", step)
    assert began == {
        "encoders.text.layers.2": 1,
        "encoders.text.layers.1": 3,
        "encoders.text.layers.0": 5,
        "encoders.text.embedding.0": 5,
        "encoders.image.layers.1": 1,
        "encoders.image.layers.0": 3,
        "encoders.image.embedding.0": 3,
        "fusion.kernel.0": 0,
    }


@pytest.mark.parametrize(
    "pattern, group, message",
    [
        (
            "encoders.sound.**",
            c.Group(frozen=True),
            "selects no parameter; there are image, speech, text",
        ),
        ("encoders.speech.layer", c.Group(frozen=True), "did you mean 'encoders.speech.layers'"),
        ("encoders.speech.**", c.Group(frozen=True, roles=("router",)), "selects no parameter"),
        ("fusion.**", c.Group(frozen=True, rate=0.1), "have no effect"),
        ("fusion.**", c.Group(frozen=True, by_layer=3), "have no effect"),
        ("fusion.queries", c.Group(by_layer=3), "has no layers; use frozen_until alone"),
        ("fusion.**", c.Group(dtype="bfloat16"), "is for frozen parameters"),
    ],
)
def test_a_group_that_cannot_be_meant_is_named(subject, pattern, group, message):
    with pytest.raises(UserError, match=message):
        begun(grouped({pattern: group}), subject)
