"""The image encoder: published sizes, the outputs of other implementations, native resolution, pooling."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
import weights as w
from untrained import parameters

from mmjax import config as c
from mmjax.data.patches import patchify
from mmjax.errors import UserError
from mmjax.models import AttentionPool, BlockStyle, ClassPool, LastPool, MeanPool, ViT
from mmjax.stream import Stream


def packed(pictures, patch, special=0, room=0, first=0):
    """Pictures [H, W, 3] in one row, each after `special` tokens (the first column being `first`), then empty room."""
    features, segments, positions = [], [], []
    for number, picture in enumerate(pictures, 1):
        patches, places = patchify(picture, patch)
        features += [np.zeros((special, patch * patch * 3), np.uint8), patches]
        positions += [np.array([[-1, first + i] for i in range(special)], np.int32).reshape(-1, 2), places]
        segments += [number] * (special + len(patches))
    empty = max(room - len(segments), 0)
    features, positions = np.concatenate(features), np.concatenate(positions)
    return Stream(
        np.pad(features, ((0, empty), (0, 0)))[None],
        np.pad(segments, (0, empty))[None].astype(np.int32),
        np.pad(positions, ((0, empty), (0, 0)))[None],
    )


def pictures(*sizes, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (height, width, 3), np.uint8) for height, width in sizes]


def slots(*segments):
    nothing = np.zeros((1, len(segments)), np.int32)
    return Stream(nothing, np.array([segments], np.int32), nothing)


def initialised(model, *inputs):
    return {"params": parameters(model, *inputs)}


# Sizes. ---------------------------------------------------------------------------------------------------


def count(module, *inputs):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def square(config):
    """One empty picture of the config's size."""
    tokens = (config.image_size // config.patch) ** 2 + config.class_token + config.registers
    return Stream(
        np.zeros((1, tokens, config.patch**2 * 3), np.uint8),
        np.ones((1, tokens), np.int32),
        np.zeros((1, tokens, 2), np.int32),
    )


@pytest.mark.parametrize(
    "name, changes, head, millions",
    [
        ("Ti/16", {"class_token": True}, True, 5.7174),
        ("S/16", {"class_token": True}, True, 22.0507),
        ("B/16", {"class_token": True}, True, 86.5677),
        ("L/16", {"class_token": True}, True, 304.3266),
        ("H/14", {"class_token": True}, True, 632.0458),
        ("S/16", {"class_token": True}, False, 21.6657),
        ("B/16", {"class_token": True}, False, 85.7987),
        ("L/16", {"class_token": True}, False, 303.3016),
        ("S/16", {"positions": c.SinCos()}, True, 21.9746),  # SimpleViT
        ("B/16", {"positions": c.SinCos()}, True, 86.4156),
    ],
)
def test_presets_have_the_published_numbers_of_parameters(name, changes, head, millions):
    # Dosovitskiy et al. 2021, table 1; Beyer et al. 2022: 224 pixels, with or without the 1000-way head.
    config = c.ViT.preset(name, **changes)
    parameters = count(config, square(config)) + head * (config.width * 1000 + 1000)
    assert round(parameters / 1e6, 4) == millions


def test_the_tower_of_siglip_has_the_published_number_of_parameters():
    config = c.ViT.preset("B/16")
    tower, pool = config, c.AttentionPool(heads=12, mlp=3072)
    image = square(config)
    encoded = jax.eval_shape(lambda i: tower.init_with_output(jax.random.key(0), i)[0], image)
    assert round((count(tower, image) + count(pool, encoded, slots(1))) / 1e6, 4) == 92.8842


def test_a_preset_may_be_changed_and_must_exist():
    assert c.ViT.preset("So400m/14", layers=2) == c.ViT(patch=14, layers=2, width=1152, heads=16, mlp=4304)
    for name in ("X/16", "B", "B/x"):
        with pytest.raises(UserError, match="there is no ViT"):
            c.ViT.preset(name)


# Other implementations. -----------------------------------------------------------------------------------

SIZES = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=28, patch_size=7)
TOWER = dict(patch=7, image_size=28, layers=2, width=24, heads=3, mlp=40)


def tower_weights(weights, layers, heads, names, patches, place, special):
    """Our parameters from a torch tower; `names` says what ours are called there."""

    def block(i):
        at = layers.format(i)
        return {
            "attention_norm": w.norm(weights, f"{at}.{names['norms'][0]}"),
            "mlp_norm": w.norm(weights, f"{at}.{names['norms'][1]}"),
            "attention": w.attention(weights, f"{at}.{names['attention']}", heads, out=names["out"]),
            "mlp": w.mlp(weights, f"{at}.mlp"),
        } | {
            f"{ours}_scale": {"scale": weights[f"{at}.{theirs}.lambda1"]}
            for ours, theirs in names.get("scales", {}).items()
        }

    kernel = weights[f"{patches}.weight"]
    if kernel.ndim == 4:  # a convolution: out, channel, height, width
        kernel = kernel.transpose(0, 2, 3, 1).reshape(len(kernel), -1)
    return {
        "embedding": {"kernel": kernel.T, "bias": weights[f"{patches}.bias"]},
        "place": {"embedding": weights[place].reshape(-1, kernel.shape[0])},
        "layers": jax.tree.map(lambda *x: np.stack(x), block(0), block(1)),
        "norm": w.norm(weights, names["norm"]),
    } | {ours: weights[theirs].reshape(shape) for ours, (theirs, shape) in special.items()}


VIT = dict(norms=("layernorm_before", "layernorm_after"), attention="attention", out="o_proj", norm="layernorm")
SIGLIP = dict(norms=("layer_norm1", "layer_norm2"), attention="self_attn", out="out_proj", norm="post_layernorm")
DINO = dict(norms=("norm1", "norm2"), attention="attention", out="o_proj", norm="layernorm")


def pool_weights(weights):
    query, key, value = (
        {"kernel": kernel.T, "bias": bias}
        for kernel, bias in zip(
            np.split(weights["head.attention.in_proj_weight"], 3),
            np.split(weights["head.attention.in_proj_bias"], 3),
            strict=True,
        )
    )
    return {
        "probe": weights["head.probe"].reshape(-1),
        "attention": {
            "query": w.projection([query], 3),
            "key_value": w.projection([key, value], 3),
            "out": w.output(w.linear(weights, "head.attention.out_proj"), 3),
        },
        "mlp_norm": w.norm(weights, "head.layernorm"),
        "mlp": w.mlp(weights, "head.mlp"),
    }


def same_structure(params, model, *inputs):
    ours = jax.tree.map(np.shape, nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *inputs))["params"])
    return ours == jax.tree.map(np.shape, params)


def run_torch(model, images, **fields):
    """A torch model on pictures, normalised as ours: in channels first."""
    import torch

    pixels = torch.tensor((np.stack(images) / 255.0 - 0.5) / 0.5, dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.no_grad():
        return model(pixel_values=pixels, **fields)


IMAGES = pictures(*[(28, 28)] * 8)


@pytest.mark.reference
@pytest.mark.parametrize(
    "activation, theirs", [("gelu", "gelu"), ("gelu_tanh", "gelu_pytorch_tanh"), ("quick_gelu", "quick_gelu")]
)
def test_the_tower_equals_that_of_transformers(activation, theirs):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    settings = transformers.ViTConfig(**SIZES, intermediate_size=40, hidden_act=theirs, layer_norm_eps=1e-2)
    model = transformers.ViTModel(settings, add_pooling_layer=False)
    weights = w.randomised(model)
    params = tower_weights(
        weights,
        "layers.{}",
        3,
        VIT,
        "embeddings.patch_embeddings.projection",
        "embeddings.position_embeddings",
        {"class_token": ("embeddings.cls_token", 24)},
    )
    ours = ViT(**TOWER, class_token=True, block=BlockStyle(activation=activation, epsilon=1e-2))
    image = packed(IMAGES, 7, special=1)
    assert same_structure(params, ours, image)
    result = np.asarray(jax.jit(ours.apply)({"params": params}, image).features).reshape(8, 17, 24)
    np.testing.assert_allclose(result, run_torch(model, IMAGES).last_hidden_state, atol=1e-4)


@pytest.mark.reference
def test_siglip_with_its_pooling_equals_that_of_transformers():
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SIZES, intermediate_size=40))
    weights = w.randomised(model)
    params = tower_weights(
        weights,
        "encoder.layers.{}",
        3,
        SIGLIP,
        "embeddings.patch_embedding",
        "embeddings.position_embedding.weight",
        {},
    )
    style = BlockStyle(activation="gelu_tanh")
    ours, pool, image = ViT(**TOWER, block=style), AttentionPool(heads=3, mlp=40, block=style), packed(IMAGES, 7)
    assert same_structure(params, ours, image)
    encoded = jax.device_get(jax.jit(ours.apply)({"params": params}, image))
    pooled = jax.jit(pool.apply)({"params": pool_weights(weights)}, encoded, slots(*range(1, 9)))
    theirs = run_torch(model, IMAGES)
    np.testing.assert_allclose(encoded.features.reshape(8, 16, 24), theirs.last_hidden_state, atol=1e-4)
    np.testing.assert_allclose(np.asarray(pooled.features)[0], theirs.pooler_output, atol=1e-4)


@pytest.mark.reference
def test_dinov2_with_registers_equals_that_of_transformers():
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    settings = transformers.Dinov2WithRegistersConfig(**SIZES, mlp_ratio=2, num_register_tokens=3)
    model = transformers.Dinov2WithRegistersModel(settings)
    weights = w.randomised(model)
    names = DINO | {"scales": {"attention": "layer_scale1", "mlp": "layer_scale2"}}
    params = tower_weights(
        weights,
        "encoder.layer.{}",
        3,
        names,
        "embeddings.patch_embeddings.projection",
        "embeddings.position_embeddings",
        {"class_token": ("embeddings.cls_token", 24), "registers": ("embeddings.register_tokens", (3, 24))},
    )
    ours = ViT(**TOWER | {"mlp": 48}, class_token=True, registers=3, block=BlockStyle(layer_scale=1.0))
    image = packed(IMAGES, 7, special=4)
    assert same_structure(params, ours, image)
    result = jax.device_get(jax.jit(ours.apply)({"params": params}, image))
    theirs = run_torch(model, IMAGES).last_hidden_state
    kept = [0, *range(4, 20)]
    np.testing.assert_allclose(result.features.reshape(8, 20, 24)[:, kept], theirs[:, kept], atol=1e-4)
    assert not np.any(result.segments.reshape(8, 20)[:, 1:4]), "registers are discarded"


@pytest.mark.reference
def test_native_resolution_equals_naflex_of_transformers():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {key: value for key, value in SIZES.items() if key != "image_size"}
    settings = transformers.Siglip2VisionConfig(**sizes, intermediate_size=40, num_patches=16)
    settings._attn_implementation = "eager"
    model = transformers.Siglip2VisionModel(settings)
    weights = w.randomised(model)
    params = tower_weights(
        weights,
        "encoder.layers.{}",
        3,
        SIGLIP,
        "embeddings.patch_embedding",
        "embeddings.position_embedding.weight",
        {},
    )
    grids = [(2, 5), (4, 4), (6, 2), (3, 3), (1, 16), (1, 1), (5, 3), (7, 2)]
    images = pictures(*[(7 * rows, 7 * columns) for rows, columns in grids])
    style = BlockStyle(activation="gelu_tanh")
    ours = ViT(**TOWER, max_patches=16, block=style)
    image = packed(images, 7, room=100)
    result = jax.device_get(jax.jit(ours.apply)({"params": params}, image))
    pool = AttentionPool(heads=3, mlp=40, block=style)
    pooled = jax.jit(pool.apply)({"params": pool_weights(weights)}, result, slots(*range(1, 9)))

    patches = np.zeros((8, 16, 147), np.float32)
    mask = np.zeros((8, 16), np.int64)
    for number, picture in enumerate(images):
        cut, _ = patchify(picture, 7)
        patches[number, : len(cut)], mask[number, : len(cut)] = (cut / 255.0 - 0.5) / 0.5, 1
    with torch.no_grad():
        theirs = model(torch.tensor(patches), torch.tensor(mask), torch.tensor(grids))
    for number in range(8):
        expected = theirs.last_hidden_state[number][: mask[number].sum()]
        np.testing.assert_allclose(result.features[result.segments == number + 1], expected, atol=1e-4)
    np.testing.assert_allclose(np.asarray(pooled.features)[0], theirs.pooler_output, atol=1e-4)


# Native resolution. ---------------------------------------------------------------------------------------

SMALL = dict(patch=4, image_size=16, layers=2, width=16, heads=2, mlp=24)


@pytest.mark.parametrize(
    "positions", [c.LearnedGrid(), c.LearnedGrid(registers=True), c.SinCos(), c.Rotary(), c.CentredRotary()]
)
def test_native_resolution_of_a_square_image_is_the_fixed_size_model(positions):
    image = packed(pictures((16, 16), (16, 16)), 4, special=3)
    settings = dict(**SMALL, positions=positions, class_token=True, registers=2)
    fixed, native = ViT(**settings), ViT(**settings, max_patches=16)
    params = initialised(fixed, image)
    ours, theirs = (jax.jit(model.apply)(params, image) for model in (fixed, native))
    # Relative to the largest feature, as in `mmjax check`: the two sum over rows of different length.
    np.testing.assert_allclose(ours.features, theirs.features, rtol=0, atol=1e-6 * float(np.abs(ours.features).max()))
    np.testing.assert_array_equal(ours.segments, theirs.segments)


@pytest.mark.parametrize(
    "positions",
    [c.LearnedGrid(), *(pytest.param(p, marks=pytest.mark.slow) for p in (c.SinCos(), c.Rotary())), c.CentredRotary()],
)
def test_images_of_any_size_give_the_same_packed_and_alone(positions):
    images = pictures((12, 20), (4, 4), (16, 16), (8, 32))
    model = ViT(**SMALL, positions=positions, class_token=True, registers=1, max_patches=16)
    row = packed(images, 4, special=2, room=60)
    params = initialised(model, row)
    apply = jax.jit(model.apply)
    together = jax.device_get(apply(params, row))
    gradient = jax.jit(jax.grad(lambda p, i: (model.apply(p, i).features ** 2).sum()))
    summed = None
    for number, picture in enumerate(images, 1):
        single = packed([picture], 4, special=2, room=60)
        alone = jax.device_get(apply(params, single))
        np.testing.assert_allclose(
            together.features[together.segments == number], alone.features[alone.segments > 0], atol=1e-5
        )
        one = jax.device_get(gradient(params, single))
        summed = one if summed is None else jax.tree.map(np.add, summed, one)
    for a, b in zip(jax.tree.leaves(gradient(params, row)), jax.tree.leaves(summed), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(np.abs(b).max())))


def test_what_stands_in_empty_positions_changes_nothing():
    model = ViT(**SMALL, class_token=True, registers=1, max_patches=16)
    pool = AttentionPool(heads=2, mlp=8)
    row = packed(pictures((12, 20)), 4, special=2, room=24)
    params = initialised(model, row)
    pool_params = initialised(pool, jax.eval_shape(model.apply, params, row), slots(1))
    empty = (row.segments == 0)[..., None]
    spoilt = row._replace(
        features=np.where(empty, np.uint8(255), row.features),
        positions=np.where(empty, np.int32(-(2**31)), row.positions),
    )

    @jax.jit
    def run(params, pool_params, image):
        def loss(params, pool_params):
            tokens = model.apply(params, image)
            pooled = pool.apply(pool_params, tokens, slots(1, 2, 0)).features
            return (pooled**2).sum(), (tokens.features, pooled)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, pool_params)

    clean = run(params, pool_params, row)
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(run(params, pool_params, spoilt)), strict=True):
        np.testing.assert_array_equal(a, b)
    nothing = run(params, pool_params, spoilt._replace(segments=np.zeros_like(row.segments)))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(nothing)), "zeros, and gradients of zero"


# Registers and pooling. -----------------------------------------------------------------------------------


def test_registers_are_seen_by_the_patches_and_differ():
    image = packed(pictures((16, 16)), 4, special=2, first=1)
    model = ViT(**SMALL, registers=2)
    params = initialised(model, image)
    out = jax.jit(model.apply)
    before = np.asarray(out(params, image).features)
    for register in range(2):
        changed = jax.tree.map(np.copy, params)
        changed["params"]["registers"][register, ::3] += 1.0
        assert np.abs(np.asarray(out(changed, image).features) - before)[0, 2:].max() > 1e-3


@pytest.mark.parametrize("placed", [False, True])
def test_learned_positions_are_those_of_the_patches_and_of_placed_registers(placed):
    """Without class token, places count from the first patch, or from the first register that has one."""
    image = packed(pictures((16, 16)), 4, special=2, first=1)
    model = ViT(**SMALL | {"layers": 1}, registers=2, positions=c.LearnedGrid(registers=placed))
    params = initialised(model, image)
    own = params["params"]
    apply = functools.partial(model.apply, capture_intermediates=lambda m, _: type(m) is nn.Dropout)
    _, state = jax.device_get(jax.jit(apply)(params, image))
    embedded = state["intermediates"]["Dropout_0"]["__call__"][0][0]
    place = own["place"]["embedding"]
    assert len(place) == 16 + 2 * placed
    np.testing.assert_array_equal(embedded[:2], own["registers"] + place[:2] if placed else own["registers"])
    patch = (image.features[0, 2] / 255.0 - 0.5) / 0.5 @ own["embedding"]["kernel"] + own["embedding"]["bias"]
    np.testing.assert_allclose(embedded[2], patch + place[2 * placed], atol=1e-5)


def test_pools_give_one_vector_per_example_in_its_slot():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(1, 9, 4)).astype(np.float32)
    segments = np.array([[1, 1, 1, 1, 3, 3, 3, 3, 0]])
    positions = np.array([[[-1, 0], [0, 0], [0, 1], [1, 0]] * 2 + [[0, 0]]])
    features[0, 8] = np.nan
    tokens = Stream(features, segments, positions)

    def pooled_by(pool, tokens, *examples):
        return jax.device_get(jax.jit(pool.apply)({}, tokens, slots(*examples)))

    mean, first = (pooled_by(pool, tokens, 1, 2, 3, 0) for pool in (MeanPool(), ClassPool()))
    np.testing.assert_allclose(
        mean.features[0, [0, 2]], [features[0, 1:4].mean(0), features[0, 5:8].mean(0)], atol=1e-6
    )
    np.testing.assert_array_equal(first.features[0, [0, 2]], features[0, [0, 4]])
    for pooled in (mean, first):
        assert pooled.segments.tolist() == [[1, 0, 3, 0]], "an example without a picture stays empty"
        assert not np.any(pooled.features[0, [1, 3]])
    text = tokens._replace(positions=np.array([[0, 1, 2, 3] * 2 + [0]]))
    np.testing.assert_array_equal(pooled_by(ClassPool(), text, 1).features[0, 0], features[0, 0])
    np.testing.assert_array_equal(pooled_by(LastPool(), text, 1, 2, 3).features[0, ::2], features[0, [3, 7]])
    np.testing.assert_allclose(pooled_by(MeanPool(), text, 3).features[0, 0], features[0, 4:8].mean(0), atol=1e-6)


def test_attention_pooling_does_not_see_the_neighbour():
    pool = AttentionPool(heads=2, mlp=8)
    features = np.random.default_rng(0).normal(size=(1, 6, 4)).astype(np.float32)
    tokens = Stream(features, np.array([[1, 1, 1, 2, 2, 0]]), np.zeros((1, 6, 2), int))
    params = initialised(pool, tokens, slots(1, 2))
    apply = jax.jit(functools.partial(pool.apply, params))
    features = features.copy()
    features[0, 3:] = 9.0
    both = (tokens, tokens._replace(features=features))
    one, other = (np.asarray(apply(stream, slots(1, 2)).features)[0] for stream in both)
    np.testing.assert_array_equal(one[0], other[0])
    assert np.abs(one[1] - other[1]).max() > 1e-3


def test_channels_are_normalised_each_by_its_own():
    image = packed(pictures((16, 16)), 4)
    settings = dict(**SMALL, pixels=c.PixelNormalisation(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)))
    params = initialised(ViT(**settings), image)
    kernel = params["params"]["embedding"]["kernel"]
    mean, std = (np.tile(getattr(settings["pixels"], key), 16) for key in ("mean", "std"))
    # The same, folded into the first linear layer of a model that does not normalise.
    folded = jax.tree.map(lambda x: x, params)
    folded["params"]["embedding"] = {
        "kernel": kernel / std[:, None],
        "bias": params["params"]["embedding"]["bias"] - (mean / std) @ kernel,
    }
    plain = ViT(**SMALL, pixels=c.PixelNormalisation(mean=0.0, std=1.0))
    ours, theirs = (
        jax.jit(model.apply)(p, image).features for model, p in ((ViT(**settings), params), (plain, folded))
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
