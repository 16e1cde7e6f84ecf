"""Rematerialisation: the same gradients with less memory, and what `mmjax plan` makes of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny

from mmjax import config as c
from mmjax.errors import UserError
from mmjax.models.remat import POLICIES, check_offload, towers, with_remat
from mmjax.parallel import machines
from mmjax.parallel.runtime import CPU_FLAGS
from mmjax.stream import Stream
from mmjax.train.build import build_layout, build_model
from mmjax.train.step import divide, measure, unboxed

HERE = [name for name in POLICIES if name != "offload"]


def loss_of(config, model):
    def loss(params, batch, key):
        sums = measure(model, params, batch, {"dropout": key, "augment": key})
        return sum(divide(sums[f"{name}/loss"]) for name in model.tasks if f"{name}/loss" in sums)

    return loss


def parameters(model, batch):
    return unboxed(jax.jit(model.init)(jax.random.key(0), batch)["params"])


# Gradients. -----------------------------------------------------------------------------------------------


def everything():
    """A config with every kind of stack that a run may have together, of two layers each, dropout and augmentation."""
    config = tiny()
    changes = {"layers": 2, "dropout": 0.2}
    encoders = {name: dataclasses.replace(e, **changes) for name, e in config.model.encoders.items()}
    masks = c.SpecAugment(frequency_masks=1, frequency_width=20, time_masks=1)
    encoders["speech"] = dataclasses.replace(encoders["speech"], augment=c.SpeechAugmentation(masks=masks))
    decoder = c.TextDecoder(vocabulary=128, layers=2, width=16, heads=2, mlp=32, dropout=0.2)
    tasks = {
        "answer": config.model.tasks["answer"],
        "transcript": c.Write(reads=("speech", "image"), decoder=decoder),
        "pixels": c.MaskedPatches(decoder=c.PatchDecoder(layers=2, width=16, heads=2, mlp=32)),
    }
    model = dataclasses.replace(
        config.model,
        encoders=encoders,
        fusion=dataclasses.replace(config.model.fusion, **changes),
        tasks=tasks,
    )
    return dataclasses.replace(config, model=model)


def random_batch(config, rows=2):
    """Two examples in each row, of random content."""
    batch, rng = build_layout(config).empty(rows), np.random.default_rng(0)

    def fill(name, stream):
        length = stream.segments.shape[1]
        unit = 2 if name in ("examples", "answer") else length
        segments = np.repeat([1, 2], unit // 2)[:length]
        segments = np.pad(segments, (0, length - len(segments)))
        positions = np.where(segments > 0, np.arange(length) % max(unit // 2, 1), 0)
        if name == "image":
            positions = np.stack([positions // 8, positions % 8], axis=-1)
        shape, dtype = stream.features.shape, stream.features.dtype
        features = rng.normal(size=shape) if dtype.kind == "f" else rng.integers(1, 12, shape)
        tile = lambda x: np.broadcast_to(x, (rows, *x.shape)).astype(np.int32)  # noqa: E731
        return Stream(features.astype(dtype), tile(segments), tile(positions))

    return {name: fill(name, stream) for name, stream in batch.items()}


def loss_and_gradients(config):
    model, batch = build_model(config.model), random_batch(config)
    params = parameters(model, batch)
    return params, jax.jit(jax.value_and_grad(loss_of(config, model)))(params, batch, jax.random.key(1))


def compare(one, other):
    (params, (loss, found)), (expected_params, (expected_loss, expected)) = one, other
    jax.tree.map(np.testing.assert_array_equal, params, expected_params)  # the same layout, begun with the same numbers
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    for (path, x), y in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=3e-6 * largest, err_msg=jax.tree_util.keystr(path))


@pytest.fixture(scope="module")
def plain():
    return loss_and_gradients(everything())


@pytest.mark.parametrize("turn", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
@pytest.mark.slow
def test_gradients_and_random_draws_are_the_same(plain, turn):
    """Every tower has each of the policies once."""
    config = everything()
    for number, name in enumerate(towers(config.model)):
        config = dataclasses.replace(config, model=with_remat(config.model, HERE[1:][(number + turn) % 3], only=name))
    assert len({tower.remat for tower in towers(config.model).values()}) == 3
    compare(loss_and_gradients(config), plain)


@pytest.mark.slow
def test_unrolled_gradients_are_the_same():
    config = deep(layers=2, dropout=0.2)
    expected = loss_and_gradients(config)
    for remat in HERE[1:]:
        model = with_remat(dataclasses.replace(config.model, unroll=True), remat)
        compare(loss_and_gradients(dataclasses.replace(config, model=model)), expected)


# Memory. --------------------------------------------------------------------------------------------------


def deep(layers, width=32, dropout=0.0):
    """Two narrow towers, fused."""
    shape = dict(layers=layers, width=width, heads=1, mlp=2 * width, dropout=dropout)
    config = tiny()
    model = c.Multimodal(
        encoders={"text": c.Transformer(vocabulary=128, **shape), "sensor": c.Vectors(inputs=8, **shape)},
        fusion=c.CrossAttention(**{**shape, "layers": 2}, queries=2),
        tasks={"answer": c.Classify(outputs=13)},
    )
    data = dataclasses.replace(
        config.data,
        source=c.Folder(splits={"train": "somewhere"}),
        rows={"text": 64, "sensor": 64, "examples": 2},
        subsets={"text+sensor": 1.0},
    )
    evaluation = dataclasses.replace(config.evaluation, subsets=("text+sensor",))
    return dataclasses.replace(config, model=model, data=data, evaluation=evaluation)


def temporary_memory(config, remat, unroll=False):
    model = build_model(with_remat(dataclasses.replace(config.model, unroll=unroll), remat))
    batch = build_layout(config).empty(8)
    params = jax.eval_shape(lambda: unboxed(model.init(jax.random.key(0), batch)["params"]))
    lowered = jax.jit(jax.grad(loss_of(config, model))).lower(params, batch, jax.random.key(0))
    program = lowered.compile(dict([CPU_FLAGS[0].removeprefix("--").split("=")]))  # the order that runs on CPU ask for
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_compiled_memory_falls_from_none_to_full():
    sizes = {remat: temporary_memory(deep(layers=32), remat) for remat in HERE}
    assert sizes["none"] > 2 * sizes["dots"] > 6 * sizes["block"], sizes
    # The same block is computed again in both: what "full" does not keep is small beside it in these towers.
    assert sizes["full"] < 1.1 * sizes["block"], sizes


@pytest.mark.slow
def test_unrolled_memory_falls_too():
    """Without a loop a compiler could find that what is computed again was computed before."""
    sizes = {remat: temporary_memory(deep(layers=6), remat, unroll=True) for remat in HERE}
    assert sizes["none"] > 1.3 * sizes["dots"] > 1.3 * sizes["block"] and sizes["full"] < 1.05 * sizes["block"], sizes


# Plans. ---------------------------------------------------------------------------------------------------


def test_an_offload_needs_a_host_with_memory_of_its_own():
    config = deep(layers=2)
    config = dataclasses.replace(config, model=with_remat(config.model, "offload", only="encoders.text"))
    with pytest.raises(UserError, match=r"model.encoders.text.remat is 'offload', but a cpu has no memory beside"):
        check_offload(config.model, jax.devices()[0])
    check_offload(deep(layers=2).model, jax.devices()[0])


@pytest.mark.parametrize("tower", ["encoders.speech", "tasks.transcript.decoder"])
@pytest.mark.slow
def test_what_is_computed_again_is_known_of_every_tower(tower):
    """Against its definition: what the whole model keeps less for it, a block at a time."""
    from mmjax.plan.compilation import describe
    from mmjax.plan.estimate import kept_for_backward

    def kept(remat):
        config = everything()
        config = dataclasses.replace(config, model=with_remat(config.model, remat, only=tower))
        return kept_for_backward(describe(config, machines.parse("cpu:1"), None), rows=2)

    none, block = kept("none"), kept("block")
    fewer = none.activations - block.activations
    assert none.again == 0 < fewer and block.again == pytest.approx(fewer / 2, rel=0.02)  # of two blocks


@pytest.mark.slow
def test_the_estimate_follows_the_policy(monkeypatch):
    """Without a compiler: what is kept falls, what is computed twice rises."""
    from mmjax.plan import plan, topology

    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    found = {}
    for remat in POLICIES:
        config = deep(layers=8)
        config = dataclasses.replace(config, model=with_remat(config.model, remat))
        found[remat] = plan.plan(config, machines.parse("h100:1"))
    kept = {remat: result["memory"]["activations"] for remat, result in found.items()}
    assert kept["none"] > 2 * kept["dots"] > 4 * kept["block"] > 8 * kept["full"], kept
    # 2 towers of 8 layers: 8 rows of 64 tokens of 32 numbers each, and the same number of queries in the fusion's two.
    inputs = 2 * 8 * 8 * 64 * 32 * 4
    assert found["offload"]["host_memory_bytes"] == pytest.approx(inputs, rel=0.05)
    assert "host_memory_bytes" not in found["block"]
    assert kept["block"] - kept["offload"] == pytest.approx(inputs, rel=0.05)
    # One block at a time, and the inputs of all blocks of a tower that keeps its own input alone.
    again = {remat: result["memory"].get("computed again", 0.0) for remat, result in found.items()}
    assert again["none"] == 0 < again["dots"] < again["block"] < again["full"], again
    # Computed again: the forward pass, a third of the rest, for all blocks and then each; where products with weights
    # are kept, those of attention.
    spent = {remat: sum(part["compute"] for part in result["parts"].values()) for remat, result in found.items()}
    assert spent["none"] < spent["dots"] < spent["block"] < spent["full"], spent
    assert spent["block"] == pytest.approx(4 / 3 * spent["none"], rel=0.1)
    assert spent["full"] == pytest.approx(5 / 3 * spent["none"], rel=0.1)
    assert found["full"]["flops"] == found["none"]["flops"]  # of the model: MFU does not count what is done twice


@pytest.mark.slow
def test_search_compiles_every_policy_and_names_the_cheapest_that_fits():
    from mmjax.plan import plan, roofline

    machine = machines.parse("cpu:1")
    reached = dataclasses.replace(roofline.rates(machine, "float32"), memory=12e6)
    tried = {one["remat"]: one for one in plan.remats(deep(layers=12), machine, reached, 8, jax.devices())}
    assert list(tried) == HERE  # no offload on a CPU
    sizes = {remat: one["peak_memory_bytes"] for remat, one in tried.items()}
    assert sizes["none"] > sizes["dots"] > 12e6 > sizes["block"] and sizes["full"] < 1.1 * sizes["block"], sizes
    assert [one["fits"] for one in tried.values()] == [False, False, True, True]
    assert tried["block"]["step_seconds"] < tried["full"]["step_seconds"]
    assert plan.cheapest(tried.values()) == "block"
    assert plan.cheapest(one for one in tried.values() if not one["fits"]) is None
