"""Parts as plain data: open kinds, classes from users' files, and errors in config files."""

import dataclasses
import re

import numpy as np
import pytest
from conftest import tiny

from mmjax import config as c
from mmjax.errors import UserError
from mmjax.models import Encoder
from mmjax.tree.catalogue import catalogue, keys
from mmjax.tree.part import fields, kinds

OWN = """
import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from mmjax.models import Encoder
from mmjax.tree import setting


class Mean(Encoder, kw_only=True):
    width: int = 8  # features
    dtype: object = setting(jnp.float32)

    @nn.compact
    def __call__(self, stream, train=False):
        return stream._replace(features=nn.Dense(self.width)(stream.features))
"""


def test_an_annotation_with_a_base_class_allows_every_part_of_its_kind():
    assert {"Conformer", "ViT", "Transformer", "Vectors"} <= kinds(Encoder).keys()
    assert not {"Encoder", "SpeechEncoder"} & kinds(Encoder).keys()
    assert kinds(c.BlockStyle) == {"BlockStyle": c.BlockStyle}


def test_a_class_from_a_users_file_has_the_rights_of_ours(tmp_path):
    """It is allowed where its kind is, and its config comes back from JSON in a process that has not run its file."""
    path = tmp_path / "own.py"
    path.write_text(OWN)
    own = c.run_file(path).Mean(width=4)
    plain = c.to_dict(own)
    assert plain == {"class": f"{path}:Mean", "width": 4}
    assert c.from_dict(Encoder, plain, "encoder") == own
    other = tmp_path / "moved.py"
    other.write_text(OWN)
    found = c.from_dict(Encoder, {"class": f"{other}:Mean"}, "encoder")
    assert type(found).__name__ == "Mean" and found.width == 8
    assert [key.meaning for key in keys(type(found))] == ["features"]
    with pytest.raises(UserError, match="defines no class Median"):
        c.from_dict(Encoder, {"class": f"{other}:Median"}, "encoder")


def test_a_config_with_a_list_of_parts_comes_back_from_json():
    turns = (c.Turn(user=("And?", "And then?"), assistant="{target}"), c.Turn(user=("So?",), assistant="No."))
    source = c.Asked(source=c.SpokenEasyVQA(), user=("<speech>",), assistant="{answer}", then=turns)
    config = tiny()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, source=source))
    assert c.from_json(c.to_json(config)) == config
    with pytest.raises(UserError, match=r"unknown config key 'data.source.then\[1\].asistant'; did you mean"):
        c.from_json(c.to_json(config).replace('"assistant": "No."', '"asistant": "No."'))


def test_settings_of_the_whole_model_are_no_keys():
    assert not {"dtype", "unroll", "name", "parent"} & {field.name for field in fields(c.Conformer)}


@pytest.mark.parametrize(
    "text, message",
    [
        ("from mmjax import config as c\n\nc.Conformer(layer=3)", "line 3: Conformer has no key 'layer'; did you mean"),
        ("from mmjax.config import ViT\nViT(\n    mpl=3,\n)", "line 2: ViT has no key 'mpl'; did you mean 'mlp'?"),
        ("from mmjax import config as c\nc.OwnSource()", "line 2: OwnSource needs 'file' and 'name'"),
        ("from mmjax import config as c\nc.ViT.preset('B/x')", "line 2: there is no ViT 'B/x'"),
        (
            "from mmjax.config import Transformer\nTransformer(128, 4)",
            "line 2: the fields of Transformer are written by name: Transformer(vocabulary=..., layers=...)",
        ),
        (
            "from mmjax.config import Experimnt",
            "line 1: mmjax.config has no 'Experimnt'; did you mean 'Experiment'?",
        ),
        ("x = (", "line 1: '(' was never closed"),
    ],
)
def test_an_error_in_a_config_file_names_the_line_and_the_nearest_key(tmp_path, text, message):
    path = tmp_path / "config.py"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(f"{path}, {message}")):
        c.load(path)


def test_every_key_of_every_part_is_found_in_the_source():
    for found in catalogue(type(tiny())).values():
        for kind in found:
            assert [key.name for key in keys(kind)] == [field.name for field in fields(kind)]


def test_a_class_of_models_has_at_most_fifteen_fields():
    """Those that are chosen together form a part of their own."""
    sizes = {kind.__name__: len(fields(kind)) for found in catalogue(Encoder).values() for kind in found}
    assert max(sizes.values()) <= 15 and {"Conformer", "ViT", "Transformer"} <= sizes.keys(), sizes


def test_positions_of_a_users_class_are_positions_like_ours():
    """A linear bias per distance (ALiBi, Press et al. 2022)."""
    import jax
    import jax.numpy as jnp

    from mmjax.models.positions import TextPositions
    from mmjax.stream import Stream

    @c.part
    class LinearBias(TextPositions):
        slope: float = 1.0

        def bias(self, positions, tower, causal, keys=None):
            distance = jnp.abs(positions[:, None, :] - positions[:, :, None])
            return -self.slope * jnp.repeat(distance[:, None].astype(jnp.float32), tower.heads, axis=1)

    text = Stream(np.array([[3, 4, 5]]), np.ones((1, 3), int), np.arange(3)[None])
    size = dict(vocabulary=8, layers=1, width=8, heads=2, mlp=8)
    near, far = (c.Transformer(positions=LinearBias(slope=slope), **size) for slope in (1e6, 0.0))
    params, apply = jax.jit(near.init)(jax.random.key(0), text), jax.jit(near.apply)
    alone = apply(params, text._replace(segments=np.array([[1, 2, 3]]))).features
    assert np.allclose(apply(params, text).features, alone, atol=1e-6), "a token sees itself alone"
    assert not np.allclose(jax.jit(far.apply)(params, text).features, alone, atol=1e-3)


def test_a_misspelt_class_in_a_config_file_names_the_nearest(tmp_path):
    (tmp_path / "mine.py").write_text("from mmjax import config as c\n\nconfig = c.Classfy()\n")
    with pytest.raises(UserError, match=r"mine.py, line 3: mmjax.config has no 'Classfy'; did you mean 'Classify'\?"):
        c.load(tmp_path / "mine.py")
