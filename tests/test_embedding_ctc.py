"""`EmbeddingCTC`: the logits are products with embeddings, and what it learns is what a language model reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import config as c
from mmjax.models.task import Encoded
from mmjax.stream import Stream

RANDOM = np.random.default_rng(0)
WIDTH, IDS = 8, 6


@pytest.mark.parametrize("more", [0, 3], ids=["a row for each id", "more rows than ids"])
@pytest.mark.parametrize("blank", [0, 2, IDS], ids=["in place of the first id", "of another", "after all ids"])
def test_a_vector_has_the_class_of_the_nearest_embedding(blank, more):
    """A linear projector that passes vectors on: the token whose embedding stands in the stream is recognised."""
    encoder = c.WhisperEncoder(layers=1, width=WIDTH, heads=2, mlp=8)
    made_from = {"projector": c.Linear(stack=1), "width": WIDTH, "scale": 1.0, "embeddings": IDS + more}
    task = c.EmbeddingCTC(**made_from, outputs=max(IDS, blank + 1), blank=blank)
    table = RANDOM.normal(size=(IDS, WIDTH))
    table = np.float32(table / np.linalg.norm(table, axis=1, keepdims=True))
    said = [i for i in (1, 3, 4, 5, 0, 2) if i != blank]
    features = jnp.asarray(3 * table[said])[None]
    ones = jnp.ones((1, len(said)), jnp.int32)
    slots = Stream(None, ones[:, :1], 0 * ones[:, :1])
    stream = Stream(features, ones, jnp.arange(len(said))[None])
    text = Stream(jnp.asarray(said)[None], ones, jnp.arange(len(said))[None])
    encoded = Encoded({"examples": slots, "transcript": text}, {"speech": stream}, {}, None, {"speech": encoder})
    params = task.init(jax.random.key(0), encoded)["params"]
    out = {"kernel": jnp.eye(WIDTH), "bias": jnp.zeros(WIDTH)}
    params = jax.tree.map(jnp.zeros_like, params) | {"projector": {"out": out}, "scale": jnp.ones(WIDTH)}
    params["embedding"] = {"embedding": jnp.concatenate([table, jnp.ones((more, WIDTH))])}
    output = task.apply({"params": params}, encoded)
    assert output.prediction.features.shape == (1, len(said), task.outputs)
    assert np.array_equal(output.prediction.features.argmax(-1), output.labels.features)  # the classes of these tokens
    mean_square = np.square(table).mean()
    first = 3 * np.square(table[said[0]]).sum() / (mean_square * WIDTH**0.5)
    np.testing.assert_allclose(output.prediction.features[0, 0, output.labels.features[0, 0]], first, rtol=1e-5)
    # In a run the result is the text itself.
    decoded = task.decode(lambda *_: output, encoded, output, {"transcript": 8})
    assert decoded.features.ids[decoded.mask].ravel().tolist() == said
