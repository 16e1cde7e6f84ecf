"""FLOPs counted on the traced program, against JAX's own gradients and against layers that can be counted by hand."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import pytest
from conftest import tiny

from mmjax import config as c
from mmjax.flops import matrix_flops
from mmjax.models.attend import with_backend
from mmjax.models.task import Facts
from mmjax.parallel import machines
from mmjax.parallel.mesh import abstract_batch
from mmjax.plan import hlo
from mmjax.plan.compilation import describe
from mmjax.plan.estimate import computed_again
from mmjax.train import report
from mmjax.train.build import build_layout, build_model
from mmjax.train.groups import merged, split
from mmjax.train.step import divide, measure, unboxed

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


@pytest.mark.parametrize("unroll", [pytest.param(True, marks=pytest.mark.slow), False])
def test_the_gradient_of_a_whole_model_has_as_many(unroll):
    config = tiny()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, unroll=unroll))
    model, batch = build_model(config.model), build_layout(config).empty(2)
    params = unboxed(jax.eval_shape(lambda: model.init(jax.random.key(0), batch)["params"]))

    def outputs(p, b):
        return model.apply({"params": p}, b)

    def loss(p, b):
        return sum(jnp.sum(output.prediction.features) for output in outputs(p, b).values())

    expected = sum(matrix_flops(jax.grad(loss), params, batch).values())
    assert sum(matrix_flops(outputs, params, batch, trained=0).values()) == pytest.approx(expected, rel=0.01)


# A whole step. --------------------------------------------------------------------------------------------


class Pieces:
    """A tokenizer of 50 pieces, as far as sizes depend on it."""

    blank = 0

    def __len__(self):
        return 50


def sized(config):
    """The config with the sizes that it leaves to the data."""
    labels = {label for task in config.model.tasks.values() for label in task.labels()}
    facts = Facts(tokenizer=Pieces(), names={label: [str(n) for n in range(50)] for label in labels})
    parts = {
        kind: {name: one.resolved(facts) for name, one in getattr(config.model, kind).items()}
        for kind in ("encoders", "tasks")
    }
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **parts))


def counted(config):
    """The config's parts; FLOPs of its step by part, each once; and those that are computed again."""
    subject = describe(config, machines.parse("cpu:1"), None)
    rows = config.data.batch_rows
    step = report.step_flops(
        subject.model, subject.state.params, subject.layout, rows, training=True, groups=subject.begun.groups
    )
    return subject, step, computed_again(subject, rows)


def gradient(subject):
    """The gradient of a step's losses, and its abstract arguments; its attention is matrix products, not a kernel."""
    model = with_backend(subject.model, "xla")
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), subject.state.params)
    trained, frozen = split(params, subject.begun.groups)

    def loss(trained, frozen, batch, key):
        sums = measure(model, merged(trained, frozen), batch, {"dropout": key, "augment": key})
        return sum(divide(sums[f"{name}/loss"]) for name in model.tasks)

    batch = abstract_batch(subject.layout.empty(1), subject.config.data.batch_rows)
    return jax.grad(loss), (trained, frozen, batch, jax.eval_shape(lambda: jax.random.key(0)))


def writing(encoder, task):
    """A config of one encoder and one task, whose vocabulary does not come out in one chunk."""
    config = tiny()
    rows = {name: size for name, size in config.data.rows.items() if name != "image"}
    data = dataclasses.replace(config.data, rows=rows, subsets={encoder: 1.0}, batch_rows=2)
    encoders = {encoder: config.model.encoders[encoder]}
    model = dataclasses.replace(config.model, encoders=encoders, fusion=None, tasks={"said": task})
    return dataclasses.replace(config, data=data, model=model)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(writing("text", c.MaskedTokens(outputs=700, mask=103, chunk=300)), id="MaskedTokens"),
        pytest.param(
            writing("speech", c.Transducer(outputs=700, width=24, chunk=300)), id="Transducer", marks=pytest.mark.slow
        ),
    ],
)
def test_what_a_loss_computes_counts_to_its_task(config):
    """As in the compiled program, where every product is one that is counted once or one that is computed again."""
    subject, step, again = counted(config)
    function, arguments = gradient(subject)
    text = jax.jit(function).lower(*arguments).compile().as_text()
    program = hlo.Program(text, 1, config.data.rows["examples"])
    assert program.loops == 0
    (encoder,) = config.model.encoders
    for part in (encoder, "said"):
        assert step[part] + again.get(part, 0.0) == pytest.approx(program.flops[part], rel=0.01), part
    assert sum(program.flops.values()) == pytest.approx(step[encoder] + step["said"] + again["said"], rel=0.01)
    assert step["said"] > step[encoder] / 2


# Configs that differ in their parts; the others are like one of them.
SLOW = dict.fromkeys(
    (
        "asterisk_recognition",
        "librispeech_conformer_s",
        "manual_language_model",
        "openclipart_captions",
        "pretrain_300m",
        "sentiment",
        "smollm2_hears_and_sees",
        "quickstart",
        "tuxpaint_retrieval",
        "whisper_asterisk",
    ),
    pytest.mark.slow,
)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=SLOW.get(path.stem, pytest.mark.long))
        for path in sorted(pathlib.Path("configs").glob("*.py"))
    ],
)
def test_the_step_of_every_config_is_counted_whole_and_by_part(path):
    """Against the program of its gradient, which has nothing more than what is computed again."""
    config = sized(c.smoke(c.load(path)))
    subject, step, again = counted(config)
    function, arguments = gradient(subject)
    made = matrix_flops(function, *arguments, slots=config.data.rows["examples"])
    assert sum(step.values()) + sum(again.values()) == pytest.approx(sum(made.values()), rel=0.01)
    assert sum(again.values()) < 0.4 * sum(step.values())
    parts = {*config.model.encoders, *config.model.tasks, "fusion", "other"}
    assert set(step) <= parts and step.get("other", 0.0) < 0.01 * sum(step.values())
