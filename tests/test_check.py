"""The five invariants hold for the tiny model; and a model that breaks one is found out."""

import jax.numpy as jnp
import pytest
from conftest import tiny

from mmjax import check


@pytest.fixture(scope="module")
def subject():
    return check.Subject(tiny())


@pytest.mark.parametrize("name", ["packing", "emptiness", "absence", "division", "constancy"])
def test_invariant(subject, name):
    measured = getattr(check, name)(subject)
    assert measured == 1 if name == "constancy" else measured <= check.TOLERANCES[name]


def test_attention_across_examples_breaks_packing(monkeypatch):
    from mmjax.models import attention

    def careless(query, key, value, query_segments, key_segments, bias=None):
        return attention.attention(query, key, value, jnp.ones_like(query_segments), jnp.ones_like(key_segments), bias)

    monkeypatch.setattr("mmjax.models.conformer.attention", careless)
    assert check.packing(check.Subject(tiny())) > check.TOLERANCES["packing"]


def test_reading_empty_positions_breaks_emptiness(monkeypatch):
    monkeypatch.setattr("mmjax.models.transformer.only_tokens", lambda stream: stream)
    assert check.emptiness(check.Subject(tiny())) > check.TOLERANCES["emptiness"]
