"""Runs of tiny speech models with random parameters, for tests of what happens around a model."""

import dataclasses
import functools
import zlib

import jax
import numpy as np
from conftest import tiny
from flax.traverse_util import flatten_dict

from mmjax import config as c
from mmjax.data.text import Tokenizer
from mmjax.interchange.directories import write
from mmjax.models.task import Facts
from mmjax.stream import Stream
from mmjax.train.build import build_layout, build_model, resolved
from mmjax.train.directory import UNTRAINED
from mmjax.train.step import init_parameters, unboxed
from mmjax.tree import to_dict

WORDS = ["one two three four five six seven eight nine ten", "what is said is what is heard", "red green blue"]


@functools.cache
def tokenizer():
    return Tokenizer.train(WORDS, 60)


def parameters(module, *inputs, seed=0):
    """Parameters of any value (biases and norms, too), without the compilation that initialising takes."""
    noise = np.random.default_rng(seed)
    shapes = unboxed(jax.eval_shape(module.init, jax.random.key(0), *inputs))["params"]
    return jax.tree_util.tree_map_with_path(
        lambda path, p: np.float32(path[-1].key == "scale") + 0.3 * noise.standard_normal(p.shape).astype(np.float32),
        shapes,
    )


def causal(**changes):
    """A Conformer that can stream: chunks of 0.16 s."""
    fields = dict(
        layers=2,
        width=16,
        heads=2,
        stem=c.StridedStem(channels=4),
        convolution=c.Convolution(kernel=5, causal=True),
        chunks=c.Chunking(size=4, left=2),
    )
    return c.Conformer(**fields | changes)


def untrained(directory, encoder, tasks, hops=400, change=None):
    """Writes a run; `change`: path of a parameter and its value -> another value."""
    rows = {"speech": hops, "transcript": 60, "examples": 4}
    model = c.Multimodal(encoders={"speech": encoder}, tasks=tasks)
    data = dataclasses.replace(tiny().data, rows=rows, subsets={"speech": 1.0})
    evaluation = c.Evaluation(subsets=("speech",))
    config = resolved(tiny(data=data, model=model, evaluation=evaluation), Facts(tokenizer()))
    layout = build_layout(config, tokenizer())
    shapes = jax.eval_shape(lambda: unboxed(init_parameters(build_model(config.model), layout.empty(1), 0)))
    flat = {}
    for path, one in flatten_dict(shapes, sep="/").items():
        noise = np.random.default_rng(zlib.crc32(path.encode())).normal(size=one.shape)
        value = 0.3 * noise if path.endswith("kernel") else path.endswith("scale") + 0.1 * noise
        flat[path] = (value if change is None else change(path, value)).astype(np.float32)
    write(directory, flat, UNTRAINED, {"config.json": to_dict(config), "labels.json": {}})
    tokenizer().save(directory / "tokenizer.model")
    return directory


def language_model(directory, tokenizer):
    """Writes a run with a small language model of the tokenizer's pieces; returns its decoder and the parameters of this."""
    decoder = c.TextDecoder(layers=1, width=16, heads=2, mlp=16, cross_attention=False, vocabulary=len(tokenizer))
    source, rows = c.Manifest(splits={"test": "test.tsv"}), {"text": 8, "examples": 1}
    config = c.Experiment(
        name="tiny",
        steps=1,
        data=c.Data(source=source, rows=rows, subsets={"text": 1.0}),
        model=c.Multimodal(encoders={"text": c.TokenIds()}, tasks={"next": c.CausalLM(decoder=decoder)}),
        optimizer=c.Optimizer(schedule=c.Constant(peak=1e-3)),
    )
    ids, places = np.zeros((1, 8), np.int32), np.arange(8, dtype=np.int32)[None]
    params = unboxed(jax.jit(decoder.init)(jax.random.key(0), Stream(ids, ids + 1, places))["params"])
    params = jax.tree.map(lambda x: 3 * np.asarray(x), params)
    flat = flatten_dict({"tasks_next": {"decoder": params}}, sep="/")
    write(directory, flat, UNTRAINED, {"config.json": to_dict(config)})
    tokenizer.save(directory / tokenizer.file_name)
    return decoder, params
