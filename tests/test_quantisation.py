"""Matrix products in int8 and float8 (qwix): they are in the program, examples stay apart, and training goes as well."""

import builtins
import dataclasses

import jax
import numpy as np
import pytest
from test_remat import deep, loss_of, parameters, random_batch

from mmjax.errors import UserError
from mmjax.stream import Stream
from mmjax.train.build import build_model

STEPS = 40


def with_products(config, kind):
    return dataclasses.replace(config, model=dataclasses.replace(config.model, matrix_products=kind))


def test_without_qwix_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest):
        if name == "qwix":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=r"matrix_products='int8' needs qwix: pip install 'mmjax\[quantization\]'"):
        build_model(with_products(deep(layers=1), "int8").model)


def products(jaxpr):
    """(types of the operands, is it of the backward pass) of every product in a program."""
    found = []

    def walk(jaxpr, scope):
        for one in jaxpr.eqns:
            name = f"{scope}/{one.source_info.name_stack}"
            for value in one.params.values():
                for inner in value if isinstance(value, tuple | list) else (value,):
                    inner = getattr(inner, "jaxpr", inner)
                    if hasattr(inner, "eqns"):
                        walk(inner, name)
            if one.primitive.name == "dot_general":
                found.append((tuple(str(v.aval.dtype) for v in one.invars), "transpose" in name))

    walk(jaxpr, "")
    return found


@pytest.mark.parametrize(
    "kind, numbers, gradients", [("int8", "int8", "int8"), ("fp8", "float8_e4m3fn", "float8_e5m2")]
)
@pytest.mark.slow
def test_products_with_weights_are_of_few_bits(kind, numbers, gradients):
    """In 2 Transformer blocks 4 each; in the fusion's 8: once forward, once for the gradient of what went in."""
    pytest.importorskip("qwix")
    config = with_products(deep(layers=2), kind)
    model, batch = build_model(config.model), random_batch(config)
    params = parameters(build_model(with_products(config, "full").model), batch)
    jax.tree.map(np.testing.assert_array_equal, parameters(model, batch), params)  # begun with the same numbers
    found = products(jax.make_jaxpr(jax.grad(loss_of(config, model)))(params, batch, jax.random.key(0)).jaxpr)
    assert found.count(((numbers, numbers), False)) == 16
    assert found.count(((gradients, numbers), True)) == 16
    whole = products(
        jax.make_jaxpr(jax.grad(loss_of(config, build_model(with_products(config, "full").model))))(
            params, batch, jax.random.key(0)
        ).jaxpr
    )
    assert {types for types, _ in whole} == {("float32", "float32")}


@pytest.mark.slow
def test_an_example_does_not_depend_on_its_neighbours():
    """Scales are a token's own: beside a neighbour of a thousand times its size an example gives the same."""
    pytest.importorskip("qwix")
    config = with_products(deep(layers=2), "int8")
    model, batch = build_model(config.model), random_batch(config)
    params = parameters(model, batch)
    sensor = batch["sensor"]
    louder = np.where((sensor.segments == 2)[..., None], 1000 * sensor.features, sensor.features)
    run = jax.jit(lambda b: model.apply({"params": params}, b)["answer"].prediction)
    one, other = run(batch), run({**batch, "sensor": Stream(louder, sensor.segments, sensor.positions)})
    first = np.asarray(one.segments) == 1
    np.testing.assert_array_equal(np.asarray(one.features)[first], np.asarray(other.features)[first])
    assert np.abs(np.asarray(one.features) - np.asarray(other.features))[~first].max() > 1e-3

    exact = build_model(with_products(config, "full").model)
    whole = np.asarray(jax.jit(lambda b: exact.apply({"params": params}, b)["answer"].prediction.features)(batch))
    error = np.abs(np.asarray(one.features) - whole).max() / np.abs(whole).max()
    assert 1e-4 < error < 0.05, error  # rounded to 1 / 127, and not more


def curve(config, batches):
    """The loss at each step of plain Adam on batches in turn."""
    import optax

    model, rule = build_model(config.model), optax.adam(3e-3)
    loss = loss_of(config, model)
    params = parameters(model, batches[0])

    @jax.jit
    def step(state, batch, key):
        params, optimizer = state
        value, gradients = jax.value_and_grad(loss)(params, batch, key)
        updates, optimizer = rule.update(gradients, optimizer)
        return (optax.apply_updates(params, updates), optimizer), value

    state, losses = (params, rule.init(params)), []
    for number in range(STEPS):
        state, value = step(state, batches[number % len(batches)], jax.random.key(number))
        losses.append(float(value))
    return np.array(losses)


@pytest.mark.slow
def test_the_loss_falls_as_with_whole_products():
    """The answer is the first token of the text, modulo 4."""
    pytest.importorskip("qwix")
    config, rng = deep(layers=2), np.random.default_rng(1)

    def batch():
        made = random_batch(config, rows=16)
        text, answer = made["text"], made["answer"]
        ids = rng.integers(0, 100, text.features.shape).astype(np.int32)
        first = np.stack([ids[:, np.argmax(text.segments[0] == slot)] for slot in (1, 2)], axis=1)
        return {
            **made,
            "text": text._replace(features=ids),
            "answer": answer._replace(features=(first % 4).astype(np.int32)),
        }

    batches = [batch() for _ in range(2)]
    curves = {kind: curve(with_products(config, kind), batches) for kind in ("full", "int8")}
    assert curves["full"][-4:].mean() < 0.6 * curves["full"][0], curves["full"]
    difference = np.abs(curves["int8"] - curves["full"])
    assert difference.max() > 1e-6
    assert difference.mean() < 0.05 * curves["full"][0], (difference, curves)
