"""The cause of values that are not finite is named: an input, a parameter, or the first module."""

import re

import jax
import numpy as np
import pytest
from conftest import tiny
from flax.traverse_util import flatten_dict, unflatten_dict

from mmjax.data.loader import Batches
from mmjax.stream import WHOLE
from mmjax.train.build import build_layout, build_model, build_sampler, open_data
from mmjax.train.nan_hunt import hunt
from mmjax.train.step import init_parameters, unboxed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def subject():
    config, source = open_data(tiny())
    layout = build_layout(config, source.tokenizer)
    batch = Batches(source, layout, build_sampler(config, layout, source), WHOLE)[0]
    model = build_model(config.model)
    return model, jax.jit(lambda: unboxed(init_parameters(model, layout.empty(1), 0)))(), batch


def with_value(params, path, value):
    flat = flatten_dict(params, sep="/")
    return unflatten_dict({**flat, path: flat[path].at[...].set(value)}, sep="/")


def test_a_parameter_and_an_input_are_named(subject):
    model, params, batch = subject
    path = "encoders_image/embedding/kernel"
    said = hunt(model, with_value(params, path, np.nan), batch, jax.random.key(0))
    assert said == "parameters are not finite before the step: encoders.image.embedding.kernel"
    row = 1
    features = np.array(batch["image"].features, np.float32)
    features[row] = np.nan
    said = hunt(model, params, {**batch, "image": batch["image"]._replace(features=features)}, jax.random.key(0))
    slots = batch["examples"]
    numbers = slots.features[row][slots.segments[row] > 0].tolist()
    assert said.startswith("the input 'image' is not finite (in the rows of the examples " + str(numbers[0]))


def test_the_first_module_whose_output_overflows_is_named(subject):
    model, params, batch = subject
    path = "encoders_image/layers/mlp/up/kernel"
    said = hunt(model, with_value(params, path, 3e38), batch, jax.random.key(0))
    assert re.match(
        r"the output of encoders_image.layers.*mlp.* in layer 0 is the first .* rows of the examples \d", said
    ), said
