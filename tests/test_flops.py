"""FLOPs counted on the traced program, against JAX's own gradients and against layers that can be counted by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from conftest import tiny

from mmjax.flops import matrix_flops
from mmjax.train.build import build_layout, build_model
from mmjax.train.step import unboxed

ROWS, IN, HIDDEN, OUT = 3, 5, 7, 11


def test_by_hand():
    """The first layer needs no gradient of its input, what is stopped needs none at all."""

    def network(params, x):
        fixed = x @ jnp.ones((IN, IN))
        return jnp.tanh(fixed @ params[0]) @ params[1] + jax.lax.stop_gradient(params[0] @ params[1]).sum()

    shapes = jnp.zeros((IN, HIDDEN)), jnp.zeros((HIDDEN, OUT))
    found = matrix_flops(network, shapes, jnp.zeros((ROWS, IN)), trained=0)
    front, first, second = ROWS * IN * IN, ROWS * IN * HIDDEN, ROWS * HIDDEN * OUT
    stopped = IN * HIDDEN * OUT  # it is traced as if it had gradients: only what follows knows that it has none
    assert found == {"other": 2.0 * (front + 2 * first + 3 * second + 3 * stopped)}
    assert matrix_flops(network, shapes, jnp.zeros((ROWS, IN))) == {"other": 2.0 * (front + first + second + stopped)}


def test_a_loop_depends_on_what_is_trained_from_its_second_turn_on():
    """The carry begins as data and becomes trained; the loop counts all its turns alike."""

    def network(kernel, x):
        return jax.lax.scan(lambda carry, _: (carry @ kernel, None), x, length=4)[0]

    found = matrix_flops(network, jnp.zeros((IN, IN)), jnp.zeros((ROWS, IN)), trained=0)
    assert found == {"other": 4 * 3 * 2.0 * ROWS * IN * IN}


def test_choices_count_their_dearest_branch_and_discrete_results_have_no_gradient():
    weights, x = jnp.zeros((IN, IN)), jnp.zeros((ROWS, IN))
    product = 2.0 * ROWS * IN * IN

    def chosen(w, x):
        return jax.lax.switch(jnp.int32(x.sum()), [lambda: x, lambda: x @ w, lambda: (x @ w) @ w]) @ w

    def rounded(w, x):
        return x @ (w > 0).astype(jnp.float32)

    assert matrix_flops(chosen, weights, x, trained=0) == {"other": (2 + 3 + 3) * product}
    assert matrix_flops(rounded, weights, x, trained=0) == {"other": product}


@pytest.mark.parametrize("unroll", [True, False])
def test_the_gradient_of_a_whole_model_has_as_many(unroll):
    config = tiny()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, unroll=unroll))
    model, batch = build_model(config.model), build_layout(config).empty(2)
    params = unboxed(jax.eval_shape(lambda: model.init(jax.random.key(0), batch)["params"]))

    def outputs(p, b):
        return model.apply({"params": p}, b)

    def loss(p, b):
        return sum(jnp.sum(stream.features) for stream in outputs(p, b).values())

    expected = sum(matrix_flops(jax.grad(loss), params, batch).values())
    assert sum(matrix_flops(outputs, params, batch, trained=0).values()) == pytest.approx(expected, rel=0.01)
