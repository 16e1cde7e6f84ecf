"""Adapters (LoRA, DoRA) and frozen kernels of few bits: what they compute, what they cost, and runs that train them."""

import dataclasses
import os
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny
from jax.extend.core import Literal

from mmjax import config as c
from mmjax.check import Subject
from mmjax.errors import UserError
from mmjax.models.adapters import Adapted, adapted, adapted_kernels, as_array, change_of, merged_kernels
from mmjax.models.attention import HeadProjection, OutputProjection
from mmjax.models.layers import dense
from mmjax.models.quantised import dequantised, quantised
from mmjax.models.roles import Parameter, by_path, projection
from mmjax.parallel import machines
from mmjax.parallel.mesh import make_mesh
from mmjax.parallel.runtime import simulated
from mmjax.plan.plan import plan
from mmjax.run import Run
from mmjax.train import report
from mmjax.train.checkpoint import Checkpoints, digest
from mmjax.train.encoding import encoder_digests
from mmjax.train.loop import train
from mmjax.train.program import begin, jitted_step
from mmjax.train.step import unboxed

EVERYWHERE = {"**": c.LoRA(rank=2, alpha=3.0, roles=("projection", "router"))}


def small(**changes):
    """Questions about pictures, without speech."""
    config = tiny()
    encoders = {name: config.model.encoders[name] for name in ("image", "text")}
    tasks = {"answer": config.model.tasks["answer"]}
    fields = dict(
        data=dataclasses.replace(
            config.data, rows={"image": 128, "text": 16, "examples": 2}, subsets={"image+text": 1.0}
        ),
        model=dataclasses.replace(config.model, encoders=encoders, tasks=tasks),
        evaluation=c.Evaluation(subsets=("image+text",), final_examples=8),
        optimizer=c.Optimizer(schedule=c.Constant(peak=1e-2)),
    )
    return dataclasses.replace(config, **fields | changes)


def grouped(groups, **changes):
    return c.Optimizer(schedule=c.Constant(peak=1e-2), groups=groups, **changes)


def randomised(params, seed=0):
    """With factors and magnitudes that matter."""
    rng = np.random.default_rng(seed)

    def random(node):
        if not isinstance(node, Adapted):
            return node
        b = jnp.asarray(0.3 * rng.standard_normal(node.b.shape, np.float32))
        magnitude = node.magnitude
        if magnitude is not None:
            magnitude = magnitude * rng.uniform(0.5, 2.0, magnitude.shape).astype(np.float32)
        return node.replace(b=b, magnitude=magnitude)

    return jax.tree.map(random, params, is_leaf=lambda x: isinstance(x, Adapted))


@pytest.fixture(scope="module")
def subject(source):
    return Subject(small())


def begun(config, subject):
    return begin(config, subject.model, subject.layout, make_mesh(devices=jax.devices()[:1]))


# What an adapter computes. -------------------------------------------------------------------------------


def by_hand(x, weight, a, b, scale, magnitude=None):
    """PEFT's layers.Linear and layers.DoraLinearLayer: weight [out, in], lora_A [rank, in], lora_B [out, rank]."""
    result, change = x @ weight.T, scale * (x @ a.T) @ b.T
    if magnitude is None:
        return result + change
    share = magnitude / np.linalg.norm(weight + scale * b @ a, axis=1)
    return result + (share - 1) * result + share * change


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("kind", ["dense", "joined", "out"])
def test_it_computes_what_peft_computes(kind, dora):
    layers = {
        "dense": (dense(6, ("embed", "mlp"), jnp.float32, None), (2, 3, 5)),
        "joined": (HeadProjection(3, 2, 4), (2, 3, 5)),
        "out": (OutputProjection(7), (2, 2, 3, 4)),
    }
    layer, shape = layers[kind]
    x = np.random.default_rng(1).standard_normal(shape, np.float32)
    boxed = jax.jit(layer.init)(jax.random.key(0), x)["params"]
    params = randomised(unboxed(adapted(boxed, {"kernel": c.LoRA(rank=2, alpha=3.0, dora=dora)}, 0)))
    node = params["kernel"]
    base, a, b = (np.asarray(one) for one in (node.base, node.a, node.b))
    magnitude = None if node.magnitude is None else np.asarray(node.magnitude)
    found = np.asarray(jax.jit(layer.apply)({"params": params}, x))
    if kind == "joined":
        for one in range(3):  # an adapter for each of queries, keys and values
            m = None if magnitude is None else magnitude[one].reshape(-1)
            wanted = by_hand(x, base[:, one].reshape(5, -1).T, a[:, one].T, b[one].reshape(2, -1).T, 1.5, m)
            np.testing.assert_allclose(found[one].transpose(0, 2, 1, 3).reshape(2, 3, -1), wanted, atol=1e-5)
    else:
        x = x if kind == "dense" else x.transpose(0, 2, 1, 3).reshape(2, 3, -1)
        width = x.shape[-1]
        wanted = by_hand(x, base.reshape(width, -1).T, a.reshape(width, -1).T, b.T, 1.5, magnitude)
        np.testing.assert_allclose(found, wanted, atol=1e-5)


class Own(nn.Module):
    """A module that multiplies by its kernel as a user would."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", projection(nn.initializers.lecun_normal(), ("embed", "mlp")), (4, 3))
        return x @ kernel + jnp.einsum("ab,bc->ac", x, kernel)


def test_a_module_need_not_know_of_adapters():
    x = jnp.arange(8.0).reshape(2, 4)
    params = adapted(Own().init(jax.random.key(0), x)["params"], {"kernel": c.LoRA(rank=2, dora=True)}, 0)
    params = randomised(unboxed(params))
    found = Own().apply({"params": params}, x)
    np.testing.assert_allclose(found, 2 * x @ as_array(params["kernel"]), rtol=1e-5)


def test_scales_and_first_values():
    assert c.LoRA(rank=16, alpha=32).scale == 2 and c.LoRA(rank=16, alpha=32, scaling="rank_stabilised").scale == 8
    box = Parameter(jnp.ones((3, 100, 8)), ("layers", "embed", "mlp"), inputs=(-2,), outputs=(-1,))
    node = unboxed(adapted({"up": {"kernel": box}}, {"up": c.LoRA(rank=50, dora=True)}, 0))["up"]["kernel"]
    assert not node.b.any() and np.allclose(node.magnitude, 10.0)
    assert 0.099 < np.abs(node.a).max() <= 0.1 and not np.array_equal(node.a[0], node.a[1])
    assert abs(float(node.a.std()) * 3**0.5 - 0.1) < 0.002  # uniform between -0.1 and 0.1
    other = unboxed(adapted({"down": {"kernel": box}}, {"down": c.LoRA(rank=50)}, 0))["down"]["kernel"]
    assert not np.array_equal(node.a, other.a)


@pytest.fixture(scope="module")
def parts(source):
    """A model with convolutions, an LSTM, experts and relative positions, and a batch for it."""
    config = tiny()
    image, text = (config.model.encoders[name] for name in ("image", "text"))
    speech = {"a": config.model.encoders["speech"], "b": c.BiLSTM(layers=1, width=16, stem="full", stem_channels=4)}
    fusion = c.MixtureOfExperts(layers=1, width=16, heads=2, mlp=16, queries=2, experts=2, chosen=1)
    found = {}
    for name, encoder in speech.items():
        model = dataclasses.replace(
            config.model, encoders={"speech": encoder, "image": image, "text": text}, fusion=fusion
        )
        found[name] = Subject(dataclasses.replace(config, model=model))
    return found


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.slow
def test_every_kernel_of_a_model_may_have_an_adapter(parts, name):
    """With A B = 0 the model computes the same numbers to the bit; with any A and B, the same as with merged kernels."""
    subject = parts[name]
    apply = jax.jit(
        lambda p: [o.prediction.features for o in subject.model.apply({"params": p}, subject.batch).values()]
    )
    boxed = jax.tree.map(lambda box: box, jax.jit(subject.model.init)(jax.random.key(0), subject.batch)["params"])
    kernels = {path for path, x in by_path(unboxed(boxed)).items() if path.endswith(("kernel", "recurrent"))}
    kernels = {
        path for path in kernels if "depthwise" not in path and path != "encoders.speech.layers.convolution.kernel"
    }
    for dora in (False, True):
        adapters = {"**": dataclasses.replace(EVERYWHERE["**"], dora=dora)}
        params = unboxed(adapted(boxed, adapters, 0))
        assert set(adapted_kernels(params)) == kernels
        same = np.testing.assert_array_equal if not dora else lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)
        jax.tree.map(same, apply(params), apply(unboxed(boxed)))
        params = randomised(params)
        merged = merged_kernels(params)
        assert jax.tree.structure(merged) == jax.tree.structure(unboxed(boxed))
        for one, other, before in zip(apply(params), apply(merged), apply(unboxed(boxed)), strict=True):
            assert np.abs(one - other).max() <= 1e-5 * np.abs(one).max()
            assert np.abs(one - before).max() > 1e-2 * np.abs(one).max()


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["gated_resampled", "soft_mlp"])
def test_a_language_model_that_hears_and_sees_may_have_adapters_everywhere(fusion):
    import test_language_model as lm

    batch = lm.pack([[0, 1], [3]])
    made = lm.model(lm.FUSIONS[fusion], dataclasses.replace(lm.DECODER, tied=False))
    params = jax.jit(lambda: unboxed(adapted(made.init(jax.random.key(0), batch)["params"], EVERYWHERE, 0)))()
    params = randomised(params)
    assert {path.rpartition(".")[2] for path in adapted_kernels(params)} == {"kernel"}
    apply = jax.jit(lambda p: made.apply({"params": p}, batch)["chat"].prediction.features)
    one, other = apply(params), apply(merged_kernels(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * float(np.abs(a).max())), one, other)


def test_the_relative_change_of_a_kernel():
    box = Parameter(jnp.ones((2, 4, 4)), ("layers", "embed", "mlp"), inputs=(-2,), outputs=(-1,))
    node = unboxed(adapted({"kernel": box}, {"kernel": c.LoRA(rank=4, alpha=4)}, 0))["kernel"]
    assert not change_of(node).any()
    node = node.replace(a=jnp.stack([jnp.eye(4)] * 2), b=jnp.stack([0.5 * jnp.ones((4, 4)), jnp.zeros((4, 4))]))
    np.testing.assert_allclose(change_of(node), [0.5, 0.0])


# What it costs. ------------------------------------------------------------------------------------------


def sizes_kept(function, *arguments):
    """(shape, dtype) of what the backward pass of a function keeps, without its arguments."""
    kept = jax.make_jaxpr(lambda *given: jax.tree.leaves(jax.vjp(function, *given)[1]))(*arguments).jaxpr
    variables = {v for v in kept.outvars if not isinstance(v, Literal)} - set(kept.invars)
    return {(v.aval.shape, str(v.aval.dtype)) for v in variables}


def test_the_backward_pass_has_no_gradient_of_the_kernel():
    """Of 24 x 32 numbers: neither a product of this size, nor, of a kernel of 8 bits, an array of floats that is kept."""
    pytest.importorskip("qwix")
    layer, x = dense(32, ("embed", "mlp"), jnp.float32, None), jnp.ones((2, 5, 24))
    params = unboxed(adapted(layer.init(jax.random.key(0), x)["params"], {"kernel": c.LoRA(rank=2)}, 0))
    node = params["kernel"]
    node = node.replace(base=quantised(node.base, "int8", (-2,)))

    def loss(factors, base, x):
        kernel = node.replace(base=base, **factors)
        return (layer.apply({"params": {**params, "kernel": kernel}}, x) ** 2).sum()

    given = {"a": node.a, "b": node.b}, node.base, x
    gradient = jax.make_jaxpr(jax.grad(loss, argnums=(0, 2)))(*given)
    made = re.findall(r"f32\[([\d,]+)\] = dot_general", str(gradient))
    assert made and not {"24,32", "32,24"} & set(made), made
    kept = sizes_kept(lambda factors, x: loss(factors, node.base, x), given[0], x)
    assert kept and ((24, 32), "float32") not in kept


@pytest.mark.parametrize("dtype, steps, block", [("int8", 127, 128), ("int4", 7, 64)])
def test_few_bits(dtype, steps, block):
    """Errors are at most half a step of the largest number that shares the scale."""
    pytest.importorskip("qwix")
    kernel = np.random.default_rng(0).standard_normal((2, 128, 6)).astype(np.float32)
    few = quantised(jnp.asarray(kernel), dtype, (-2,))
    largest = np.abs(kernel).reshape(2, -1, block, 6).max(axis=2).repeat(block, axis=1)
    assert few.qvalue.dtype == dtype and few.scale.shape == (2, 128 // block, 6)
    assert (np.abs(dequantised(few) - kernel) <= 0.501 * largest / steps).all()


@pytest.mark.slow
def test_groups(subject):
    """The kernels are frozen and have no moments; a frozen group leaves the adapters in it to train."""
    pytest.importorskip("qwix")
    layers = {"encoders.image.layers": c.LoRA(rank=2), "fusion.layers": c.LoRA(rank=2, dora=True)}
    groups = {
        "fusion.layers.mlp": c.Group(frozen=True, roles=("adapter",)),
        "encoders.image.layers.mlp": c.Group(rate=0.0, roles=("adapter",)),
        "encoders.image": c.Group(frozen=True, dtype="int8"),
        "**.norm": c.Group(rate=0.5),
    }
    config = small(adapters=layers, optimizer=grouped(groups, parameters="bfloat16", ema=0.5))
    start = begun(config, subject)
    before = start.initialise()
    first, step = jax.tree.map(np.asarray, before.params), jitted_step(config, subject.model, start)
    state = before
    for _ in range(2):
        state, _ = step(state, subject.batch)
    kernels = adapted_kernels(state.params)
    assert {path.split(".")[0] for path in kernels} == {"encoders", "fusion"} and len(kernels) == 4 + 8
    image = state.params["encoders_image"]
    assert image["layers"]["mlp"]["up"]["kernel"].base.qvalue.dtype == "int8"
    assert image["norm"]["scale"].dtype == image["place"]["embedding"].dtype == "bfloat16"
    assert state.params["fusion"]["layers"]["mlp"]["up"]["kernel"].base.dtype == "bfloat16"
    for path, node in kernels.items():
        moved = {name: (getattr(node, name) != getattr(adapted_kernels(first)[path], name)).any() for name in "ab"}
        assert moved == dict.fromkeys("ab", ".mlp." not in path), path
        assert node.a.dtype == "float32"
        jax.tree.map(np.testing.assert_array_equal, node.base, adapted_kernels(first)[path].base)
    moments = adapted_kernels(state.optimizer[1].mu)
    assert moments.keys() == kernels.keys() and all(node.base is None for node in moments.values())
    assert state.average["fusion"]["layers"]["self_attention"]["qkv"]["kernel"].base is None
    whole = state.evaluated
    assert jax.tree.structure(whole) == jax.tree.structure(state.params)


def test_fewer_bytes(subject):
    pytest.importorskip("qwix")

    def size(dtype):
        config = small(
            adapters={"encoders": c.LoRA(rank=2)}, optimizer=grouped({"**": c.Group(frozen=True, dtype=dtype)})
        )
        kernels = adapted_kernels(begun(config, subject).abstract.params).values()
        return sum(x.size * x.dtype.itemsize for node in kernels for x in jax.tree.leaves(node.base))

    assert size("int8") < 0.33 * size("float32") < 0.67 * size("bfloat16") * 1.01


@pytest.mark.slow
def test_a_plan_counts_gradients_of_what_is_trained(subject):
    config = small(
        adapters={"**.layers": c.LoRA(rank=2)}, optimizer=grouped({"**": c.Group(frozen=True, dtype="bfloat16")})
    )
    memory = plan(config, machines.parse("h100:1"), estimate=True)["memory"]
    kernels = adapted_kernels(begun(config, subject).abstract.params).values()
    factors = sum(node.a.size + node.b.size for node in kernels)
    assert memory["gradients"] == 4 * factors and 0 < memory["optimizer"] - 8 * factors < 64  # some counters
    assert memory["parameters"] > 4 * factors


@pytest.mark.parametrize(
    "adapters, message",
    [
        ({"encoders.imag": c.LoRA()}, "adapters['encoders.imag'] selects no parameter; did you mean 'encoders.image'?"),
        ({"fusion.layer": c.LoRA()}, "selects no parameter; did you mean 'fusion.layers'?"),
        ({"encoders.image.norm": c.LoRA()}, "what it matches has the roles bias, norm"),
        ({"fusion": c.LoRA(roles=("router",))}, "selects no kernel of its roles"),
        ({"fusion": c.LoRA(), "fusion.layers": None}, "adapters['fusion.layers'] has no effect"),
    ],
)
def test_errors(subject, adapters, message):
    with pytest.raises(UserError, match=re.escape(message)):
        begun(small(adapters=adapters), subject)


# Runs. ---------------------------------------------------------------------------------------------------

KERNEL = ("encoders_image", "layers", "mlp", "up", "kernel")


def at(params, path=KERNEL):
    for name in path:
        params = params[name]
    return params


AFTER = c.LoRA(rank=2, dora=True, after_media=True)


@pytest.fixture(scope="module")
def adapting():
    return small(
        steps=4,
        initial={"**": None},  # random kernels under the adapters are meant
        adapters={"encoders.text.layers.mlp": None, "encoders.*.layers": c.LoRA(rank=2, dora=True)},
        optimizer=grouped({"encoders": c.Group(frozen=True)}, ema=0.5),
    )


@pytest.fixture(scope="module")
def trained(adapting, tmp_path_factory):
    """A run that was interrupted after 2 of 4 steps and resumed."""
    directory = tmp_path_factory.mktemp("adapting") / "run"
    train(dataclasses.replace(adapting, steps=2), directory)
    train(adapting, directory)
    return directory


@pytest.mark.slow
def test_a_run_resumes_and_says_what_changed(adapting, trained, tmp_path, capfd):
    train(adapting, tmp_path / "whole")
    said = " ".join(capfd.readouterr().err.split())
    assert "adapters of 6 kernels: 880 parameters" in said
    assert re.search(r"adapters changed: yes; 6 kernels, each layer by [\d.]+ % to [\d.]+ % of its norm", said)
    one, other = (digest(Checkpoints(run).read(4)) for run in (tmp_path / "whole", trained))
    assert one == other
    answer = Run(trained).predict_example(0)
    assert set(answer) >= {"answer", "answer/probabilities"}


@pytest.mark.slow
def test_frozen_parameters_are_saved_once_and_the_run_is_the_same(adapting, trained, tmp_path):
    apart = dataclasses.replace(adapting, checkpoint=c.Checkpoint(every_steps=1, frozen=False))
    train(dataclasses.replace(apart, steps=2), tmp_path)
    train(apart, tmp_path)
    one, other = Checkpoints(tmp_path), Checkpoints(trained)
    assert digest(one.read(4)) == digest(other.read(4))
    assert digest(one.parameters(4)) == digest(other.parameters(4))
    alone = (
        {path[0] for path in one._saved(4)},
        [path for path in one._saved(4) if path[0] == "params" and path[-1] == "base"],
    )
    assert alone == ({path[0] for path in other._saved(4)}, [])
    whole = dataclasses.replace(apart, checkpoint=c.Checkpoint(every_steps=1, keep=1))
    train(dataclasses.replace(whole, steps=1), tmp_path / "whole")
    train(dataclasses.replace(apart, checkpoint=c.Checkpoint(every_steps=1, keep=1, frozen=False)), tmp_path / "whole")
    assert digest(Checkpoints(tmp_path / "whole").read(4)) == digest(other.read(4)), (
        "it was switched between two starts"
    )
    file = next(path for path in (tmp_path / "frozen" / "0" / "state").rglob("*") if path.stat().st_size > 1000)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match="no checkpoint of .* can be restored: .*frozen/0 is damaged"):
        train(dataclasses.replace(apart, steps=5), tmp_path)


@pytest.mark.slow
def test_a_run_is_evaluated_with_the_average_of_its_adapters(trained):
    params, state = Run(trained).params, Checkpoints(trained).read(4)
    node = at(params)
    assert isinstance(node, Adapted) and (node.scale, node.inputs, node.outputs) == (16.0, (-2,), (-1,))
    assert "base" not in at(state["average"]) and np.array_equal(node.base, at(state["params"])["base"])
    np.testing.assert_array_equal(node.b, at(state["average"])["b"])
    assert not np.array_equal(node.b, at(state["params"])["b"])


def test_unchanged_adapters_are_a_warning(capfd):
    report.adapters({"one.kernel": np.array([0.1, 0.2]), "two.kernel": np.array([0.1, 0.0])})
    said = " ".join(capfd.readouterr().err.split())
    assert "adapters that did NOT change their kernels: 1 of 2: two.kernel" in said and "by 0 % to 20 %" in said


def loaded(config, subject):
    from mmjax.train.initial import load_initial

    start = begun(config, subject)
    return load_initial(config, start.initialise(), start.specs, subject.source.tokenizer).params


@pytest.mark.slow
def test_what_other_runs_load(adapting, trained, subject):
    """With adapters, them too; without, kernels with the adapters merged into them; new ones begin at the kernels."""
    source = Run(trained).params
    initial = {"encoders": str(trained)}
    again = at(loaded(dataclasses.replace(adapting, initial=initial), subject))
    jax.tree.map(np.testing.assert_array_equal, again, at(source))
    for other, message in (
        (c.LoRA(rank=2, alpha=64.0, dora=True), "alpha / rank 16.0 in"),
        (AFTER, "after_media False in"),
    ):
        config = dataclasses.replace(adapting, initial=initial, adapters={"encoders.text.layers.attention": other})
        with pytest.raises(UserError, match=message):
            loaded(config, subject)
    plain = at(loaded(small(initial=initial), subject))
    np.testing.assert_allclose(plain, as_array(at(source)), rtol=1e-6)
    fresh = {"encoders.**.a": None, "encoders.**.b": None, "encoders.**.magnitude": None, **initial}
    fresh = {pattern: where for pattern, where in fresh.items()}
    new = at(loaded(dataclasses.replace(adapting, initial=fresh), subject))
    np.testing.assert_allclose(new.base, as_array(at(source)), rtol=1e-6)
    assert not new.b.any()
    np.testing.assert_allclose(new.magnitude, np.linalg.norm(new.base, axis=-2), rtol=1e-6)


def test_adapters_are_new_where_the_source_has_none(run, subject, capfd):
    """`initial` need not name them; the first output of DoRA is that of the loaded kernels."""
    config = small(adapters={"encoders.*.layers": c.LoRA(rank=2, dora=True)}, initial={"encoders": str(run)})
    params, theirs = loaded(config, subject), Run(run).params
    node = at(params)
    np.testing.assert_array_equal(node.base, at(theirs))
    np.testing.assert_allclose(node.magnitude, np.linalg.norm(at(theirs), axis=-2), rtol=1e-6)
    said = " ".join(capfd.readouterr().err.split())
    assert re.search(r"new: encoders.image \(\d+\), encoders.text \(\d+\), fusion", said)
    with pytest.raises(UserError, match="has no adapters"):
        loaded(dataclasses.replace(config, initial={"encoders.**.a": str(run)}), subject)


@pytest.mark.slow
def test_devices_divide_adapters_as_their_kernels():
    """Loss and gradients on a mesh of 8 devices are those of one; A, B and magnitudes are divided along its axes."""
    program = f"""
import sys; sys.path.insert(0, {str(os.path.dirname(__file__))!r})
import jax
assert jax.device_count() == 8  # before conftest asks for one
from test_adapters import at, c, grouped, small
from mmjax.check import Subject, difference, divided
from mmjax.parallel.mesh import make_mesh
from mmjax.train.program import begin
config = small(adapters={{"**": c.LoRA(rank=2, dora=True)}}, optimizer=grouped({{"encoders": c.Group(frozen=True, dtype="int8")}}))
with jax.default_matmul_precision("highest"):
    subject = Subject(config)
    _, one = subject.run(subject.batch)
    mesh = make_mesh(fsdp=2, tensor=2, context=2)
    found = divided(subject, mesh)
    print("difference", difference(jax.tree.leaves((one["loss"], one["gradients"])), found))
    node = at(begin(config, subject.model, subject.layout, mesh).abstract.params)
    print(*(tuple(x.sharding.spec) for x in (node.base.qvalue, node.a, node.b, node.magnitude)))
"""
    process = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | simulated(8), capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    found, specs = process.stdout.strip().splitlines()[-2:]
    assert float(found.split()[1]) <= 1e-5
    assert specs == ("(None, 'fsdp', 'tensor') (None, 'fsdp', None) (None, None, 'tensor') (None, 'tensor')")


@pytest.mark.slow
def test_the_digest_of_an_encoder_of_few_bits_is_that_of_its_numbers(subject):
    """It says whether stored outputs of a frozen encoder are those of this encoder."""
    pytest.importorskip("qwix")
    data = dataclasses.replace(small().data, encoded={"image": "unused"})
    found = set()
    for seed in (0, 0, 1):
        config = small(seed=seed, optimizer=grouped({"encoders": c.Group(frozen=True, dtype="int8")}))
        params = begun(config, subject).initialise().params
        found.add(encoder_digests(dataclasses.replace(config, data=data), params)["image"])
    assert len(found) == 2
