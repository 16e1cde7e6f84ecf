"""Weights of several losses do what their papers say."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import tiny

from mmjax import check
from mmjax import config as c
from mmjax.errors import UserError
from mmjax.stream import Stream
from mmjax.train.loop import train
from mmjax.train.step import LossAndGradients, unboxed
from mmjax.train.validate import check_config
from mmjax.train.weighting import DynamicAverage, GradNorm, Uncertainty


def scalars(**values):
    return {name: jnp.float32(value) for name, value in values.items()}


def test_uncertainty_learns_the_variance_of_each_loss():
    """Kendall et al.: a noisier task gets less weight. At rest, exp(s) = 2 L, so every weighted loss is 1/2."""
    losses, weighting = scalars(sharp=0.02, noisy=3.0), Uncertainty()
    optimizer = optax.adam(0.1)

    @jax.jit
    def learn(state):
        def step(carry, _):
            s, state = carry
            updates, state = optimizer.update(jax.grad(weighting.total)(s, losses), state)
            return (optax.apply_updates(s, updates), state), None

        return jax.lax.scan(step, (state, optimizer.init(state)), length=500)[0][0]

    start = weighting.init(list(losses))
    np.testing.assert_allclose(weighting.total(start, losses), 3.02, rtol=1e-6)  # the plain sum at first
    learned = learn(start)
    for name, loss in losses.items():
        np.testing.assert_allclose(np.exp(learned[name]), 2 * loss, rtol=1e-2)


def test_uncertainty_is_the_likelihood_of_a_gaussian_with_learned_variance():
    """-log N(y; f, sigma^2), without its constant: their equation 5 with the loss (y - f)^2 / 2."""
    error, sigma = 0.7, 1.9
    total = Uncertainty().total(scalars(a=2 * np.log(sigma)), scalars(a=0.5 * error**2))
    np.testing.assert_allclose(total, error**2 / (2 * sigma**2) + np.log(sigma), rtol=1e-6)


def test_dynamic_average_weights_the_loss_that_falls_slowly():
    """Liu et al., equation 7, with periods of two steps: K exp(r / T) / sum exp(r / T)."""
    weighting = DynamicAverage(period=2, temperature=2.0)
    state, update = weighting.init(["fast", "slow"]), jax.jit(weighting.update)
    for fast, slow in ((5.0, 2.0), (3.0, 2.0), (1.5, 2.0), (0.5, 1.8)):
        assert weighting.weights(state) == {"fast": 1.0, "slow": 1.0}
        state = update(state, scalars(fast=fast, slow=slow), {})
    weights = weighting.weights(state)
    ratios = np.array([(1.5 + 0.5) / (5.0 + 3.0), (2.0 + 1.8) / (2.0 + 2.0)])
    expected = 2 * np.exp(ratios / 2) / np.exp(ratios / 2).sum()
    np.testing.assert_allclose([weights["fast"], weights["slow"]], expected, rtol=1e-6)
    assert weights["slow"] > 1 > weights["fast"]
    # Within the next period nothing changes.
    assert weighting.weights(update(state, scalars(fast=9.0, slow=9.0), {})) == weights


def test_dynamic_average_of_a_loss_that_is_not_there_is_finite():
    weighting = DynamicAverage(period=1)
    state = weighting.init(["here", "absent"])
    for loss in (4.0, 4.0, 4.0):
        state = weighting.update(state, scalars(here=loss, absent=0.0), {})
    assert weighting.weights(state) == {"here": 1.0, "absent": 1.0}


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_grad_norm_brings_gradients_to_their_targets(alpha):
    """Chen et al.: each weighted gradient is as long as the mean, times the relative inverse rate to the alpha."""
    weighting = GradNorm(shared="fusion", alpha=alpha, rate=1e-3)
    norms, first, now = scalars(a=1.0, b=10.0, c=3.0), scalars(a=2.0, b=2.0, c=2.0), scalars(a=1.0, b=0.5, c=1.5)

    @jax.jit
    def balance():
        state = weighting.update(weighting.init(list(norms)), first, norms)
        return jax.lax.scan(lambda s, _: (weighting.update(s, now, norms), None), state, length=4000)[0]

    weights = balance().weights
    np.testing.assert_allclose(sum(weights.values()), 3.0, rtol=1e-5)
    lengths = np.array([weights[n] * norms[n] for n in norms])
    rates = np.array([0.5, 0.25, 0.75])
    np.testing.assert_allclose(lengths, lengths.mean() * (rates / rates.mean()) ** alpha, rtol=0.1)
    # The paper's two-task toy: the loss with the larger gradients gets the smaller weight.
    assert weights["b"] < weights["c"] < weights["a"]


@pytest.mark.slow
def test_grad_norm_reads_the_gradient_of_each_loss_by_the_shared_part_alone():
    """In one batch and over micro-batches: the norm of the gradient of each task's loss alone."""
    subject = check.Subject(tiny())
    weighting = GradNorm(shared="encoders.speech")
    remembered = weighting.init(list(subject.model.tasks))

    def norms(micro_batches):
        compute = LossAndGradients(subject.model, micro_batches, weighting)
        sums = jax.jit(lambda *x: compute(*x)[2])(subject.params, subject.batch, jax.random.key(0), remembered)
        return {name: sums[f"{name}/shared_gradient"][0] for name in subject.model.tasks}

    def alone(name):
        only = subject.model.clone(tasks={name: subject.model.tasks[name]})
        compute = LossAndGradients(only)
        gradients = jax.jit(lambda *x: compute(*x)[1])(subject.params, subject.batch, jax.random.key(0))
        return optax.tree.norm(gradients["encoders_speech"])

    expected = {name: alone(name) for name in subject.model.tasks}
    assert all(norm > 0 for norm in expected.values())
    for micro_batches in (1, 4):
        for name, norm in norms(micro_batches).items():
            np.testing.assert_allclose(norm, expected[name], rtol=1e-4)


def test_a_part_that_is_not_there_cannot_be_shared():
    with pytest.raises(UserError, match="weighting.shared='encoders.smell' is none of encoders.image, .*fusion"):
        check_config(tiny(weighting=c.GradNorm(shared="encoders.smell")))


@pytest.mark.slow
@pytest.mark.parametrize(
    "weighting",
    [c.Uncertainty(), c.DynamicAverage(period=2), c.GradNorm(shared="encoders.speech", rate=0.2)],
    ids=lambda w: type(w).__name__,
)
def test_a_run_weighs_its_tasks_goes_on_bitwise_and_in_parts(weighting, tmp_path):
    def run(name, steps, **changes):
        config = tiny(steps=8, weighting=weighting, evaluation=c.Evaluation(subsets=()), **changes)
        train(dataclasses.replace(config, steps=steps), tmp_path / name)
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return {line["step"]: line for line in lines if line["kind"] == "train"}

    whole = run("whole", 8)
    run("parts", 4)
    again = run("parts", 8)
    assert {n: x["loss"] for n, x in again.items()} == {n: x["loss"] for n, x in whole.items()}
    accumulating = dataclasses.replace(tiny().optimizer, accumulation=4)
    for step, line in run("accumulated", 8, optimizer=accumulating).items():
        assert line["loss"] == pytest.approx(whole[step]["loss"], rel=1e-4)
    plain = [x["answer/loss"] + 0.3 * x["transcript/loss"] for x in whole.values()]
    assert whole[1]["loss"] == pytest.approx(plain[0], rel=1e-5), "all alike at first"
    assert whole[8]["loss"] != pytest.approx(plain[7], rel=1e-3)


def test_a_task_that_is_not_there_changes_no_weight():
    balance = GradNorm(shared="fusion", rate=0.01)
    state = balance.init(["here", "absent", "other"])
    for _ in range(20):
        state = balance.update(
            state, scalars(here=1.0, absent=0.0, other=2.0), scalars(here=1.0, absent=0.0, other=9.0)
        )
    assert state.weights["absent"] == 1.0 and state.weights["other"] < 1.0 < state.weights["here"]
    np.testing.assert_allclose(sum(state.weights.values()), 3.0, rtol=1e-5)
    slopes = jax.grad(Uncertainty().total)(scalars(here=0.1, absent=0.2), scalars(here=1.0, absent=0.0))
    assert slopes["absent"] == 0.0 and slopes["here"] != 0.0


def test_losses_below_zero_are_not_weighed():
    model = dataclasses.replace(tiny().model, tasks={"clean": c.Denoise(reads="speech")})
    with pytest.raises(
        UserError,
        match=r"weighting is Uncertainty, which needs losses above 0, but the loss of model.tasks.clean \(Denoise\) can",
    ):
        check_config(tiny(model=model, weighting=c.Uncertainty()))


@pytest.mark.slow
def test_ctc_and_attention_train_together_as_two_weighted_tasks():
    """Watanabe et al. 2017: a CTC loss and a decoder's, with weights of 0.3 and 0.7."""
    model = c.Multimodal(
        encoders={"signs": c.Vectors(inputs=4, layers=1, width=8, heads=2, mlp=16)},
        tasks={
            "ctc": c.CTC(reads="signs", outputs=6, weight=0.3),
            "attention": c.Write(
                reads=("signs",), decoder=c.TextDecoder(vocabulary=6, layers=1, width=8, heads=2, mlp=16), weight=0.7
            ),
        },
    )

    def stream(features):
        there = np.ones(features.shape[:2], np.int32)
        return Stream(features, there, np.arange(features.shape[1], dtype=np.int32)[None] * there)

    batch = {
        "signs": stream(np.random.default_rng(0).normal(size=(1, 9, 4)).astype(np.float32)),
        "transcript": stream(np.array([[1, 2, 2, 5]], np.int32)),
        "examples": stream(np.zeros((1, 1), np.int32)),
    }
    params = unboxed(jax.jit(model.init)(jax.random.key(0), batch)["params"])

    def run(model):
        compute = LossAndGradients(model)
        return jax.jit(lambda *x: compute(*x)[:2])(params, batch, jax.random.key(0))

    alone = {name: run(model.clone(tasks={name: task.clone(weight=1.0)})) for name, task in model.tasks.items()}
    expected = jax.tree.map(lambda a, b: 0.3 * a + 0.7 * b, alone["ctc"], alone["attention"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), run(model), expected)
    for part in ("encoders_signs", "tasks_ctc", "tasks_attention"):
        assert all(np.any(gradient) for gradient in jax.tree.leaves(expected[1][part])), part
