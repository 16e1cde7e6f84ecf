"""Pictures on the host: resizing, grids of patches at any aspect ratio, augmentation as a function of its key."""

import dataclasses
import io

import numpy as np
import pytest
from conftest import tiny
from PIL import Image

from mmjax import config as c
from mmjax.data.example import Example
from mmjax.data.image import open_image, read_image
from mmjax.data.image_augmentation import ImageAugmentation
from mmjax.data.image_operations import OPERATIONS, draw_crop
from mmjax.data.labels import Label
from mmjax.data.layout import Layout
from mmjax.data.loader import Batches
from mmjax.data.packing import Packer
from mmjax.data.patches import patch_grid, patchify
from mmjax.data.sampler import Sampler
from mmjax.errors import UserError
from mmjax.stream import Share
from mmjax.train.build import build_layout, image_changes
from mmjax.train.validate import check_config


def png(height, width, seed=0):
    """A picture with structure (so that resizing matters) and noise, encoded."""
    generator = np.random.default_rng([seed, height, width])
    y, x = np.mgrid[:height, :width]
    waves = 127 + 100 * np.sin(x / 3 + y / 5)[..., None] * np.array([1.0, -1.0, 0.5])
    pixels = (waves + generator.normal(scale=20, size=(height, width, 3))).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


# Sizes. ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height, width, size", [(100, 70, 32), (17, 90, 48), (20, 20, 64), (64, 64, 64), (1, 5, 8)])
def test_resized_pixels_equal_a_triangle_filter(height, width, size):
    """Bilinear with the filter as wide as the picture shrinks, in float64: one level of 255 for rounding."""
    encoded = png(height, width)
    pixels = np.asarray(Image.open(io.BytesIO(encoded)), np.float64)
    for axis, length in ((0, height), (1, width)):
        scale = length / size
        centre = (np.arange(size) + 0.5) * scale
        distance = np.abs(np.arange(length) + 0.5 - centre[:, None]) / max(scale, 1.0)
        weights = np.maximum(0.0, 1.0 - distance)
        weights /= weights.sum(axis=1, keepdims=True)
        pixels = np.moveaxis(np.tensordot(weights, pixels, (1, axis)), 0, axis)
    assert np.abs(read_image(encoded, size) - pixels).max() <= 1.0


@pytest.mark.reference
@pytest.mark.parametrize("height, width, size", [(100, 70, 32), (17, 90, 48)])
def test_pixels_equal_those_of_torch(height, width, size):
    torch = pytest.importorskip("torch")
    image = torch.tensor(np.asarray(open_image(png(height, width)))).permute(2, 0, 1)[None]
    theirs = torch.nn.functional.interpolate(image, (size, size), mode="bilinear", antialias=True)
    assert np.abs(read_image(png(height, width), size) - theirs[0].permute(1, 2, 0).numpy().astype(int)).max() <= 1


@pytest.mark.parametrize("patch, most", [(4, 16), (16, 256), (14, 1024), (7, 1)])
def test_grids_keep_the_aspect_ratio_and_the_limit(patch, most):
    generator = np.random.default_rng(0)
    sizes = np.exp(generator.uniform(0, np.log(5000), (3000, 2))).astype(int)
    grid = patch_grid(sizes, patch, most)
    assert grid.min() >= 1 and grid.prod(axis=1).max() <= most
    natural = np.maximum(1, np.floor(sizes / patch + 0.5))
    assert (grid <= natural).all(), "nothing is enlarged by more than the rounding"
    fits = natural.prod(axis=1) <= most
    np.testing.assert_array_equal(grid[fits], natural[fits])
    # Where a picture was shrunk: within one patch of its own shape at exactly `most` patches, or of what there is.
    height, width = sizes[~fits].T
    ideal = np.stack([np.sqrt(most * height / width), np.sqrt(most * width / height)], axis=1)
    error = np.abs(grid[~fits] - np.minimum(ideal, natural[~fits]).clip(1, most))
    assert error.max(initial=0.0) < 1.0


def test_grids_of_squares_fill_the_limit():
    np.testing.assert_array_equal(patch_grid(np.array([[64, 64], [100, 100], [5000, 5000]]), 8, 64), [[8, 8]] * 3)
    assert patch_grid(np.array([[1, 100_000]]), 16, 256).tolist() == [[1, 256]]


GEOMETRY = {"patch": 4, "image_size": 16, "max_patches": 16, "class_token": True, "registers": 2}
NATIVE = Layout.of({"image": 40, "examples": 4}, geometry={"image": GEOMETRY})


def test_the_index_and_the_picture_agree_on_the_number_of_tokens():
    sizes = np.random.default_rng(0).integers(1, 90, (40, 2))
    said = NATIVE.tokens({"image": sizes})["image"]
    for size, tokens in zip(sizes, said, strict=True):
        packer = Packer(NATIVE, 1)
        packer.add(0, Example({"image": png(*size)}), frozenset(["image"]))
        assert packer.batch["image"].mask.sum() == tokens


def test_pictures_of_many_sizes_share_a_row():
    packer = Packer(NATIVE, 1)
    for size in ((12, 20), (4, 8), (8, 4)):
        packer.add(0, Example({"image": png(*size)}), frozenset(["image"]))
    image = packer.batch["image"]
    assert image.segments[0].tolist() == [1] * 18 + [2] * 5 + [3] * 5 + [0] * 12
    assert image.positions[0, 18:23].tolist() == [[-1, 0], [-1, 1], [-1, 2], [0, 0], [0, 1]]
    patches, places = patchify(np.asarray(open_image(png(12, 20))), 4)
    np.testing.assert_array_equal(image.features[0, 3:18], patches)
    np.testing.assert_array_equal(image.positions[0, 3:18], places)
    assert not image.features[0, :3].any()
    with pytest.raises(UserError, match="has 19 patches, but the row has room for 12"):
        packer.add(0, Example({"image": png(16, 16)}), frozenset(["image"]))


def test_tokens_are_said_by_height_and_width_by_patches_or_by_the_config():
    sizes = {"text": np.array([3, 4, 5])}

    def tokens(layout, image=None):
        return layout.tokens(sizes | ({} if image is None else {"image": np.array(image)}))["image"].tolist()

    fixed = Layout.of(NATIVE.rows, geometry={"image": GEOMETRY | {"max_patches": None}})
    assert tokens(NATIVE) == tokens(fixed) == [19, 19, 19]
    assert tokens(NATIVE, [[8, 12], [0, 0], [500, 500]]) == [9, 0, 19]
    assert tokens(NATIVE, [6, 0, 16]) == [9, 0, 19]
    assert tokens(fixed, [[8, 12], [0, 0], [500, 500]]) == [19, 0, 19]


def vision_config(**changes):
    """The tiny config with pictures at native resolution."""
    config = tiny()
    image = c.ViT(patch=16, image_size=64, layers=1, width=16, heads=2, mlp=32, max_patches=20, registers=1)
    image = dataclasses.replace(image, **changes)
    model = dataclasses.replace(config.model, encoders={**config.model.encoders, "image": image})
    return dataclasses.replace(config, model=model)


def test_the_layout_follows_the_config():
    image = build_layout(vision_config(class_token=True)).streams["image"]
    assert (image.max_patches, image.registers, image.class_token) == (20, 1, True)
    with pytest.raises(
        UserError, match="data.rows.image=128 is no multiple of 201, the tokens of one image; write 201"
    ):
        build_layout(vision_config(max_patches=200))
    with pytest.raises(UserError, match="data.rows.image=128 is no multiple of 17, the tokens of one image; write 136"):
        build_layout(vision_config(max_patches=None))


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--data.image-augmentation", "{'flip': 1.5}"], "image_augmentation.flip is 1.5; it must be between 0 and 1"),
        (["--data.image-augmentation", "{'aspect': 0.5}"], "aspect is 0.5; it must be between 1 and"),
        (["--model.encoders.image.pixels.std", "(0.2, 0.0, 0.2)"], "must be one number or 3 above 0"),
        (["--model.encoders.image.positions", "SinCos", "--model.encoders.image.width", "18"], "4 parts of sincos"),
        (["--model.encoders.image.image-size", "4"], "less than one patch"),
        (["--model.encoders.text.block.key-value-heads", "3"], "heads=2 do not divide among block.key_value_heads=3"),
        (["--model.encoders.text.block.head-width", "7"], "rotary positions need heads whose width divides by 2"),
        (
            ["--model.encoders.text.positions", "DistanceBuckets", "--model.encoders.text.positions.buckets", "256"],
            "buckets=256 must be",
        ),
    ],
)
def test_parts_that_do_not_fit_are_named(flags, message):
    with pytest.raises(UserError, match=message):
        check_config(c.override(tiny(), flags))


# Augmentation. --------------------------------------------------------------------------------------------

PICTURE = open_image(png(60, 80))
ALL = ImageAugmentation(seed=1, operations=2)


def changed(number=5, step=7, augmentation=ALL, picture=PICTURE, size=(32, 32)):
    return np.asarray(augmentation(picture, size, number=number, step=step))


def test_an_augmented_picture_depends_on_seed_step_and_example_alone():
    first = changed()
    assert first.shape == (32, 32, 3) and first.dtype == np.uint8
    changed(number=99)
    np.testing.assert_array_equal(changed(), first)
    for other in (changed(number=6), changed(step=8), changed(augmentation=dataclasses.replace(ALL, seed=2))):
        assert (other != first).any()


def test_without_any_operation_a_picture_is_only_resized():
    nothing = ImageAugmentation(seed=0, least_area=None, flip=0.0)
    np.testing.assert_array_equal(changed(augmentation=nothing), read_image(png(60, 80), 32))


def test_a_mirrored_picture_is_seen_as_often_as_asked():
    mirror = ImageAugmentation(seed=0, least_area=None, flip=0.25)
    straight = read_image(png(60, 80), 32)
    seen = []
    for number in range(400):
        image = changed(number, augmentation=mirror)
        assert (image == straight).all() or (image == straight[:, ::-1]).all()
        seen.append((image != straight).any())
    assert abs(np.mean(seen) - 0.25) < 4 * (0.25 * 0.75 / 400) ** 0.5


@pytest.mark.parametrize("size, shape", [((80, 60), 1.0), ((640, 480), 2.0), ((1, 7), 1.0), ((500, 3), 1.0)])
def test_crops_lie_in_the_picture_and_have_the_area_asked_for(size, shape):
    generator = np.random.default_rng(0)
    boxes = np.array([draw_crop(size, shape, 0.25, 4 / 3, generator) for _ in range(500)])
    left, upper, right, lower = boxes.T
    assert (left >= 0).all() and (upper >= 0).all() and (right <= size[0]).all() and (lower <= size[1]).all()
    width, height = right - left, lower - upper
    assert width.min() >= 1 and height.min() >= 1
    if min(size) > 10:
        area = width * height / (size[0] * size[1])
        assert area.min() > 0.24 and area.max() > 0.6 and area.std() > 0.1
        ratio = width / height / shape
        assert ratio.min() > 0.97 * 3 / 4 and ratio.max() < 1.03 * 4 / 3 and ratio.std() > 0.1


def test_a_crop_that_never_fits_is_the_middle():
    assert draw_crop((500, 3), 1.0, 0.9, 1.0, np.random.default_rng(0)) == (248, 0, 251, 3)


def operate(name, strength, sign=1.0, picture=PICTURE):
    return np.asarray(OPERATIONS[name](picture, strength, sign)).astype(int)


def test_randaugment_has_the_fourteen_operations_of_the_paper_and_little_of_each_changes_little():
    # Cubuk et al. 2020, section 3.
    assert len(OPERATIONS) == 14
    original = np.asarray(PICTURE).astype(int)
    for name in OPERATIONS:
        assert operate(name, 1.0).shape == original.shape
        if name not in ("autocontrast", "equalize"):  # these two have no strength
            # Levels: at strength 0 every other operation is the identity.
            assert np.abs(operate(name, 0.0) - original).max() <= 1, name
        if name != "identity":
            assert np.abs(operate(name, 1.0) - original).mean() > 1.0, name


def test_randaugment_equals_its_definitions():
    pixels = np.asarray(PICTURE).astype(int)
    np.testing.assert_array_equal(operate("solarize", 0.5), np.where(pixels < 128, pixels, 255 - pixels))
    np.testing.assert_array_equal(operate("solarize", 1.0), 255 - pixels)
    np.testing.assert_array_equal(operate("posterize", 1.0), pixels & 0b11110000)
    assert np.abs(operate("brightness", 1.0, -1.0) - 0.1 * pixels).max() <= 1
    moved = operate("translate_x", 331 / 150 * 10 / 80)  # 10 of 80 pixels to the left
    assert np.abs(moved[:, :69] - pixels[:, 10:79]).max() <= 1 and (moved[:, 71:] == 128).all()
    moved = operate("translate_y", 331 / 150 * 10 / 60, -1.0)
    assert np.abs(moved[11:] - pixels[1:-10]).max() <= 1 and (moved[:9] == 128).all()
    # Brightness grows by 4 a row; turned, it grows at an angle of 30 degrees to that.
    ramp = Image.fromarray(np.tile(np.arange(0, 160, 4, dtype=np.uint8)[:, None, None], (1, 40, 3)))
    down, across = np.gradient(operate("rotate", 1.0, picture=ramp)[10:30, 10:30, 0].astype(float))
    assert np.degrees(np.arctan2(abs(across.mean()), down.mean())) == pytest.approx(30.0, abs=1.5)


class Pictures:
    """A source of pictures of many sizes."""

    tokenizer, labels = None, {"answer": Label("class", ("yes", "no"))}

    def __init__(self):
        self.sizes = {"image": np.random.default_rng(0).integers(6, 60, (24, 2))}

    def __len__(self):
        return len(self.sizes["image"])

    def __getitem__(self, index):
        return Example({"image": png(*self.sizes["image"][index], seed=index)})


def picture_batches(augmentation=None, host=0, hosts=1):
    source = Pictures()
    sampler = Sampler(NATIVE.positions(source.sizes), NATIVE.rows, {"image": 1.0}, 4, seed=3, window=24)
    return Batches(source, NATIVE, sampler, Share((host,), hosts), augmentation)


def by_example(batch):
    """The patches of every example by its number."""
    image, slots = batch["image"], batch["examples"]
    return {
        int(slots.features[r, s]): image.features[r][image.segments[r] == s + 1]
        for r, s in zip(*np.nonzero(slots.segments), strict=True)
    }


def test_training_pictures_change_with_the_step_and_not_with_the_number_of_hosts():
    plain, augmented = picture_batches(), picture_batches(ALL)
    for name in ("segments", "positions"):  # augmentation changes pixels, never the packing
        np.testing.assert_array_equal(getattr(plain[2]["image"], name), getattr(augmented[2]["image"], name))
    assert (plain[2]["image"].features != augmented[2]["image"].features).any()
    np.testing.assert_array_equal(picture_batches(ALL)[2]["image"].features, augmented[2]["image"].features)
    hosts = [picture_batches(ALL, host, 2)[2]["image"].features for host in range(2)]
    np.testing.assert_array_equal(np.concatenate(hosts), augmented[2]["image"].features)
    assert not plain.skipped and not augmented.skipped
    seen = [by_example(augmented[step]) for step in range(12)]
    again = [(a[n], b[n]) for i, a in enumerate(seen) for b in seen[i + 1 :] for n in a.keys() & b.keys()]
    assert len(again) > 10 and all((one[3:] != other[3:]).any() for one, other in again)


def test_the_config_builds_the_augmentation():
    config = tiny(seed=9)
    assert image_changes(config)[0] is None
    chosen = c.ImageAugmentation(operations=2, magnitude=5.0)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, image_augmentation=chosen))
    check_config(config)
    assert image_changes(config)[0] == ImageAugmentation(seed=9, operations=2, magnitude=5.0)
    assert c.from_json(c.to_json(config)) == config
