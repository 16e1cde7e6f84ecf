"""The five invariants hold for the tiny model; and a model that breaks one is found out."""

import dataclasses
import json
import subprocess
import sys

import jax.numpy as jnp
import pytest
from conftest import tiny

from mmjax import check
from mmjax import config as c


@pytest.mark.slow
def test_the_invariants_hold(tmp_path):
    """In a process of its own: it simulates 8 devices, and starts 2 more processes.

    Of a config whose micro-batches have fewer rows than there are devices: it can be trained on one, so it can be checked.
    """
    config = tiny()
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, accumulation=2))
    (tmp_path / "tiny.json").write_text(c.to_json(config))
    command = [sys.executable, "-m", "mmjax", "check", str(tmp_path / "tiny.json"), "--json"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr + process.stdout
    results = json.loads(process.stdout)
    assert list(results) == ["packing", "emptiness", "absence", "division", "constancy"]
    assert all(result["holds"] for result in results.values())
    assert results["packing"]["difference"] <= 1e-5 and results["emptiness"]["difference"] == 0
    assert results["absence"]["difference"] <= 1e-6 and results["division"]["difference"] <= 1e-5
    assert results["constancy"]["difference"] == 1


@pytest.mark.slow
def test_attention_across_examples_breaks_packing(monkeypatch):
    from mmjax.models.attention import attention

    def careless(query, key, value, query_segments, key_segments, *rest, **named):
        segments = jnp.ones_like(query_segments), jnp.ones_like(key_segments)
        return attention(query, key, value, *segments, *rest, **named)

    monkeypatch.setattr("mmjax.models.conformer_block.attention", careless)
    assert check.packing(check.Subject(tiny())) > check.TOLERANCES["packing"]


@pytest.mark.slow
def test_reading_empty_positions_breaks_emptiness(monkeypatch):
    monkeypatch.setattr("mmjax.models.transformer.only_tokens", lambda stream: stream)
    assert check.emptiness(check.Subject(tiny())) > check.TOLERANCES["emptiness"]
