"""Positions of patches: the formula, the learned grid at other sizes, and its resizing for checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from mmjax.models.positions import bucket_of, resize_positions, sample_grid, sincos


def test_sincos_positions_equal_the_formula():
    # Beyer et al. 2022: frequencies 10000^(-k / (width / 4 - 1)).
    code = sincos(jnp.array([[[3, 5], [-1, 0]]]), 16)
    omega = [10_000.0 ** (-k / 3) for k in range(4)]
    expected = [f(p * o) for p in (5.0, 3.0) for f in (np.sin, np.cos) for o in omega]
    np.testing.assert_allclose(code[0, 0], expected, atol=1e-6)
    assert not np.any(code[0, 1]), "a class token has no place"


def test_a_sampled_grid_of_the_same_size_is_the_table():
    table = np.random.default_rng(0).normal(size=(5, 5, 3)).astype(np.float32)
    places = np.stack(np.meshgrid(np.arange(5), np.arange(5), indexing="ij"), -1).reshape(1, -1, 2)
    sampled = jax.jit(sample_grid)(jnp.asarray(table), jnp.asarray(places), jnp.ones((1, 25), int))
    np.testing.assert_array_equal(sampled[0], table.reshape(25, 3))


def test_distances_share_buckets_by_their_logarithm():
    # Raffel et al. 2020, section 2.1: with 32 buckets and 128 tokens, 0 to 7 are apart, and 8 more end at 128.
    sizes = jnp.array([0, 1, 7, 8, 11, 12, 15, 16, 127, 128, 10_000])
    expected = [0, 1, 7, 8, 8, 9, 9, 10, 15, 15, 15]
    assert bucket_of(-sizes, 32, 128).tolist() == expected
    assert bucket_of(sizes[1:], 32, 128).tolist() == [16 + bucket for bucket in expected[1:]]
    assert bucket_of(sizes, 32, 128, causal=True).tolist() == [0] * 11, "nothing comes later"


@pytest.mark.reference
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("buckets, max_distance", [(32, 128), (8, 20), (12, 24), (64, 512)])
def test_buckets_are_those_of_transformers(buckets, max_distance, causal):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = np.arange(-1000, 1001)
    theirs = T5Attention._relative_position_bucket(torch.tensor(distances), not causal, buckets, max_distance)
    np.testing.assert_array_equal(bucket_of(jnp.asarray(distances), buckets, max_distance, causal), theirs)


TABLE = np.random.default_rng(0).normal(size=(2 + 14 * 14, 5)).astype(np.float32)


@pytest.mark.parametrize("method", ["bilinear", "bicubic", "antialiased"])
def test_resizing_to_the_same_size_changes_nothing(method):
    np.testing.assert_array_equal(resize_positions(TABLE, (14, 14), (14, 14), method, special=2), TABLE)


@pytest.mark.parametrize("grid", [(24, 24), (14, 20), (7, 9), (1, 3)])
def test_bilinear_resizing_equals_scipy(grid):
    ours = resize_positions(TABLE, (14, 14), grid, "bilinear", special=2)
    old = TABLE[2:].reshape(14, 14, 5).astype(np.float64)
    theirs = scipy.ndimage.zoom(old, (grid[0] / 14, grid[1] / 14, 1), order=1)
    np.testing.assert_allclose(ours[2:], theirs.reshape(-1, 5), atol=1e-6)
    np.testing.assert_array_equal(ours[:2], TABLE[:2])


@pytest.mark.reference
@pytest.mark.parametrize("grid", [(24, 24), (14, 20), (7, 9), (1, 3)])
@pytest.mark.parametrize("method", ["bicubic", "antialiased"])
def test_bicubic_resizing_equals_torch(grid, method):
    torch = pytest.importorskip("torch")
    ours = resize_positions(TABLE, (14, 14), grid, method, special=2)
    old = torch.tensor(TABLE[2:], dtype=torch.float64).reshape(1, 14, 14, 5).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(
        old, grid, mode="bicubic", align_corners=False, antialias=method == "antialiased"
    )
    np.testing.assert_allclose(ours[2:], theirs[0].permute(1, 2, 0).reshape(-1, 5), atol=1e-5)
    np.testing.assert_array_equal(ours[:2], TABLE[:2])


def test_resizing_a_table_of_another_grid_is_an_error():
    with pytest.raises(ValueError, match="198 positions are not 1 and a grid of 14 x 14"):
        resize_positions(TABLE, (14, 14), (7, 7), "bicubic", special=1)
