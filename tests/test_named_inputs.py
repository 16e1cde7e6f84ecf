"""Inputs by name: several recordings, pictures and sequences of vectors of an example, from every kind of source."""

import csv
import io
import json
import tarfile

import jax
import numpy as np
import pytest
import soundfile
from PIL import Image
from untrained import parameters

from mmjax import config as c
from mmjax.data.build import build
from mmjax.data.indexing import open_index
from mmjax.data.layout import Layout
from mmjax.data.loader import Batches
from mmjax.data.packing import Packer
from mmjax.data.sampler import Sampler
from mmjax.errors import UserError
from mmjax.models import Vectors, ViT
from mmjax.stream import Share

RATE = 16_000
LEFT = {"hop": 160, "window": 400, "align": 4}
RIGHT = {"hop": 320, "window": 640, "align": 2}


def listed(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def opened(source, tmp_path, inputs, split="train", **changes):
    data = c.Data(source=source, inputs=inputs, rows={"examples": 4}, subsets={"speech": 1.0}, **changes)
    return data.open(split, tmp_path)


def noise(path, seconds, seed, channels=1):
    samples = 0.1 * np.random.default_rng(seed).standard_normal((round(seconds * RATE), channels))
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    return samples.astype(np.float32)


def picture(path, height, width, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        for a, b in zip(one[name], other[name], strict=True):
            np.testing.assert_array_equal(a, b)


# Recordings. ----------------------------------------------------------------------------------------------


def test_two_recordings_of_an_example_stand_in_streams_with_front_ends_of_their_own(tmp_path):
    heard = noise(tmp_path / "call.wav", 0.5, 0, channels=2)
    other = noise(tmp_path / "other.wav", 0.3, 1)
    rows = [{"call": "call.wav", "far": "other.wav"}, {"call": "call.wav"}]
    inputs = {
        "left": c.Audio(column="call", channels=(0,)),
        "right": c.Audio(column="call", channels=(1,)),
        "far": c.Audio(),
    }
    found = opened(c.Manifest(splits={"train": listed(tmp_path / "l.jsonl", rows)}), tmp_path, inputs)
    assert not found.unread and found.sizes["far"].tolist() == [4_800, 0]
    layout = Layout.of(
        {"left": 200, "right": 100, "far": 100, "examples": 2},
        geometry={"left": LEFT, "right": RIGHT, "far": RIGHT},
        inputs=inputs,
    )
    assert {name: taken.tolist() for name, taken in layout.positions(found.sizes).items()} == {
        "left": [52, 52],
        "right": [26, 26],
        "far": [16, 0],
        "examples": [1, 1],
    }
    packer = Packer(layout, 1)
    for number in range(2):
        packer.add(0, found[number], frozenset(inputs), number)
    for name, samples, hop in (("left", heard[:, 0], 160), ("right", heard[:, 1], 320), ("far", other[:, 0], 320)):
        stream = packer.batch[name]
        assert stream.features.shape[-1] == hop
        for segment in (1, 2) if name != "far" else (1,):
            blocks = stream.features[0][stream.segments[0] == segment]
            np.testing.assert_array_equal(blocks.reshape(-1)[: len(samples)], samples)
    hidden = Packer(layout, 1)
    hidden.add(0, found[0], frozenset(["right"]))
    assert hidden.batch["right"].mask.any() and not hidden.batch["left"].mask.any()


def test_a_config_gives_each_encoder_the_geometry_of_its_stream(tmp_path):
    from mmjax.train.build import build_layout

    front_end = c.LogMel(hop=320, window=640)
    small = dict(layers=1, width=8, heads=1, stem=c.StridedStem(channels=2))
    config = c.Experiment(
        name="two",
        steps=1,
        data=c.Data(
            source=c.Manifest(splits={"train": "list.jsonl"}),
            inputs={"left": c.Audio(), "right": c.Audio(), "imu": c.VectorInput(width=6)},
            rows={"left": 400, "right": 200, "imu": 50, "examples": 4},
            subsets={"left+right+imu": 1.0},
        ),
        model=c.Multimodal(
            encoders={
                "left": c.Conformer(**small),
                "right": c.Conformer(**small, front_end=front_end),
                "imu": c.Vectors(inputs=6, layers=1, width=8, heads=1, mlp=8),
            },
            fusion=c.Add(width=8),
            tasks={"answer": c.Classify(outputs=2)},
        ),
        optimizer=c.Optimizer(schedule=c.WarmupCosine(peak=1e-3, warmup=1)),
        evaluation=c.Evaluation(subsets=()),
    )
    assert c.from_json(c.to_json(config)) == config
    batch = build_layout(config).empty(2)
    assert {name: batch[name].features.shape for name in ("left", "right", "imu")} == {
        "left": (2, 400, 160),
        "right": (2, 200, 320),
        "imu": (2, 50, 6),
    }
    for inputs, message in (
        ({"left": c.Image()}, "model.encoders.left reads no Image; set data.inputs.left to what it reads"),
        ({"imu": c.VectorInput(width=3)}, "data.inputs.imu.width=3, but model.encoders.imu reads vectors of 6 numbers"),
        ({"imu": c.Text()}, "model.encoders.imu reads no Text"),
    ):
        with pytest.raises(UserError, match=message):
            Layout.of(
                config.data.rows,
                geometry={"left": LEFT, "right": RIGHT, "imu": {"width": 6}},
                inputs={**config.data.inputs, **inputs},
            )


def test_a_list_of_recordings_is_heard_as_one(tmp_path):
    parts = [noise(tmp_path / f"{n}.wav", 0.2 + 0.1 * n, n) for n in range(3)]
    rows = [{"audio": ["0.wav", "1.wav", "2.wav"]}, {"audio": "1.wav"}, {"audio": [], "text": "x"}]
    source = c.Manifest(splits={"train": listed(tmp_path / "l.jsonl", rows)})
    found = opened(source, tmp_path, {}, speed=c.SpeedPerturbation())
    joined = np.concatenate(parts)[:, 0]
    assert found.sizes["speech"].tolist() == [len(joined), len(parts[1]), 0]
    np.testing.assert_array_equal(found[0].input("speech"), joined)
    rows = [{"audio": ["0.wav", "1.wav"], "start": 0.1}]
    with pytest.raises(UserError, match="start and seconds are of one recording, but speech lists 2"):
        opened(c.Manifest(splits={"train": listed(tmp_path / "l.jsonl", rows)}), tmp_path, {})


# Pictures. ------------------------------------------------------------------------------------------------

SIZES = ((12, 20), (8, 8), (16, 4))


@pytest.fixture
def album(tmp_path):
    """Examples of three, one and two pictures."""
    for number, (height, width) in enumerate(SIZES):
        picture(tmp_path / f"{number}.png", height, width, number)
    rows = [{"images": ["0.png", "1.png", "2.png"]}, {"images": "1.png"}, {"image": ["2.png", "0.png"]}]
    return opened(c.Manifest(splits={"train": listed(tmp_path / "l.jsonl", rows)}), tmp_path, {})


SMALL = dict(patch=4, image_size=8, layers=1, width=16, heads=2, mlp=32)
OPTIONS = [
    {"max_patches": None, "class_token": True, "registers": 1},
    {"max_patches": 16, "class_token": True, "registers": 1},
    {"max_patches": 16, "positions": c.Rotary()},
    {"max_patches": 16, "positions": c.SinCos()},
]


@pytest.mark.parametrize("options", OPTIONS, ids=["folded", "learned", "rotary", "sincos"])
def test_the_pictures_of_an_example_are_encoded_as_each_alone(album, options):
    tower = ViT(**SMALL, **options)
    geometry = {"image": tower.geometry()}
    layout = Layout.of({"image": 72, "examples": 4}, geometry=geometry)
    counts = layout.tokens(album.sizes)["image"].tolist()
    packer = Packer(layout, 1)
    for number in range(3):
        packer.add(0, album[number], frozenset(["image"]), number)
    image = packer.batch["image"]
    assert [int((image.segments == segment).sum()) for segment in (1, 2, 3)] == counts
    params, apply = {"params": parameters(tower, image)}, jax.jit(tower.apply)
    whole = jax.device_get(apply(params, image))
    pictures = [one if isinstance(one, list) else [one] for one in (album[n].inputs["image"] for n in range(3))]
    for segment, encoded in enumerate(pictures, 1):
        ours = whole.features[0][image.segments[0] == segment]
        alone = []
        for one in encoded:
            packer = Packer(layout, 1)
            packer.add(0, album[0]._replace(inputs={"image": one}), frozenset(["image"]))
            stream = packer.batch["image"]
            alone.append(np.asarray(apply(params, stream).features)[0][stream.segments[0] == 1])
        np.testing.assert_allclose(ours, np.concatenate(alone), atol=1e-5)
    places = np.asarray(whole.positions)[0][np.asarray(whole.segments[0]) == 1]
    assert places.max() < 16  # a pool or a head sees positions within each picture


def test_batches_of_several_pictures_do_not_depend_on_the_number_of_hosts(album):
    layout = Layout.of({"image": 40, "examples": 4}, geometry={"image": ViT(**SMALL, max_patches=16).geometry()})

    def batches(host, hosts):
        sampler = Sampler(layout.positions(album.sizes), layout.rows, {"image": 1.0}, 2, needs=layout.needs)
        return Batches(album, layout, sampler, Share((host,), hosts))

    whole = batches(0, 1)[3]
    parts = [batches(host, 2)[3] for host in range(2)]
    same(whole, {n: type(s)(*(np.concatenate([p[n][i] for p in parts]) for i in range(3))) for n, s in whole.items()})


# Vectors. -------------------------------------------------------------------------------------------------

IMU = [np.random.default_rng(n).standard_normal((length, 3)).astype(np.float32) for n, length in enumerate((5, 9, 2))]


def vectors_of(kind, home):
    """A source of the same vectors."""
    import pyarrow
    import pyarrow.parquet

    for number, one in enumerate(IMU):
        np.save(home / f"{number}.npy", one)
        np.savez(home / f"{number}.npz", imu=one, other=np.zeros(3))
    if kind == "parquet":
        table = pyarrow.table({"imu": [one.tolist() for one in IMU], "label": list("aba")})
        pyarrow.parquet.write_table(table, home / "t.parquet")
        return c.Parquet(splits={"train": str(home / "t.parquet")})
    if kind == "csv":
        with (home / "l.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("imu", "label"), *((f"{n}.npy", "aba"[n]) for n in range(3))])
        return c.Manifest(splits={"train": str(home / "l.csv")})
    if kind == "tar":
        with tarfile.open(home / "a.tar", "w") as tar:
            for number in range(3):
                tar.add(home / f"{number}.npy", f"{number}.imu.npy")
        return c.TarShards(splits={"train": str(home / "a.tar")})
    values = {
        "lists": [one.tolist() for one in IMU],
        "npy": [f"{n}.npy" for n in range(3)],
        "npz": [f"{n}.npz" for n in range(3)],
    }
    rows = [{"imu": value, "label": "aba"[n]} for n, value in enumerate(values[kind])]
    return c.Manifest(splits={"train": listed(home / "l.jsonl", rows)})


@pytest.mark.parametrize("kind", ["lists", "npy", "npz", "csv", "parquet", "tar"])
def test_vectors_come_from_lists_and_from_files(kind, tmp_path):
    inputs = {"imu": c.VectorInput(width=3, array="imu")}
    found = opened(vectors_of(kind, tmp_path), tmp_path, inputs)
    assert found.sizes["imu"].tolist() == [5, 9, 2] and not found.unread
    for number, expected in enumerate(IMU):
        np.testing.assert_array_equal(found[number].input("imu"), expected)
    layout = Layout.of({"imu": 16, "examples": 3}, geometry={"imu": Vectors(inputs=3).geometry()}, inputs=inputs)
    packer = Packer(layout, 1)
    for number in range(3):
        packer.add(0, found[number], frozenset(["imu"]), number)
    np.testing.assert_array_equal(packer.batch["imu"].features[0], np.concatenate(IMU))


@pytest.mark.parametrize(
    "value, message",
    [
        ([[1.0, 2.0]], r"has vectors of the shape \[1, 2\], not \[T, 3\]"),
        ([1.0, 2.0, 3.0], r"of the shape \[3\]"),
        ([[1.0, 2.0, 3.0], [1.0]], "imu cannot be"),
        ("flat.npy", r"of the shape \[4\]"),
        ("words.npy", "cannot read the array of .*holds <U1, not numbers"),
        ("two.npz", "holds a.npy, b.npy; name one"),
        ("missing.npy", "cannot read .*missing.npy"),
        ("list.txt", "cannot read the array of"),
    ],
)
def test_what_are_no_vectors_is_named(value, message, tmp_path):
    np.save(tmp_path / "flat.npy", np.zeros(4))
    np.save(tmp_path / "words.npy", np.array([["a", "b", "c"]]))
    np.savez(tmp_path / "two.npz", a=IMU[0], b=IMU[1])
    (tmp_path / "list.txt").write_text("1 2 3")
    source = c.Manifest(splits={"train": listed(tmp_path / "l.jsonl", [{"imu": value}])})
    with pytest.raises(UserError, match=message):
        opened(source, tmp_path, {"imu": c.VectorInput(width=3)})


# Shards and tar files. ------------------------------------------------------------------------------------


def test_shards_keep_all_inputs(tmp_path):
    noise(tmp_path / "a.wav", 0.3, 0, channels=2), noise(tmp_path / "b.wav", 0.2, 1)
    picture(tmp_path / "a.png", 8, 12, 0), picture(tmp_path / "b.png", 4, 8, 1)
    np.save(tmp_path / "imu.npy", IMU[0])
    rows = [
        {"call": ["a.wav", "b.wav"], "image": ["a.png", "b.png"], "imu": "imu.npy", "text": "x"},
        {"call": "b.wav", "image": "b.png", "imu": IMU[1].tolist()},
    ]
    inputs = {"left": c.Audio(column="call"), "imu": c.VectorInput(width=3)}
    source = c.Manifest(splits={"train": listed(tmp_path / "l.jsonl", rows)})
    before = opened(source, tmp_path, inputs)
    fields = before.fields
    collection, stamp = source.stamped("train", tmp_path, fields)
    index = open_index(collection, stamp, tmp_path, "it", fields)
    build(collection, index, stamp, tmp_path / "shards", "train", fields=fields)
    after = opened(c.Shards(directory=str(tmp_path / "shards")), tmp_path, inputs)
    for name, sizes in before.sizes.items():
        np.testing.assert_array_equal(sizes, after.sizes[name])
    for number in range(2):
        one, other = before[number], after[number]
        assert one.inputs.keys() == other.inputs.keys() and one.inputs["image"] == other.inputs["image"]
        for name in ("left", "imu"):
            np.testing.assert_array_equal(one.input(name), other.input(name))


def test_members_of_a_tar_file_name_their_input(tmp_path):
    left, right = noise(tmp_path / "l.wav", 0.2, 0), noise(tmp_path / "r.wav", 0.3, 1)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, file in (("0.left.wav", "l.wav"), ("0.right.wav", "r.wav")):
            tar.add(tmp_path / file, name)
        info = tarfile.TarInfo("0.mood.cls")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"glad"))
    data = c.Data(
        source=c.TarShards(splits={"train": str(tmp_path / "a.tar")}),
        inputs={"left": c.Audio(), "right": c.Audio()},
        rows={"examples": 1},
        subsets={"left": 1.0},
    )
    found = data.open("train", tmp_path, {"mood": "class"})
    assert len(found) == 1 and found.labels["mood"].names == ("glad",)
    np.testing.assert_array_equal(found[0].input("left"), left[:, 0])
    np.testing.assert_array_equal(found[0].input("right"), right[:, 0])


def test_an_input_from_a_named_column_is_also_read_from_its_alias(tmp_path):
    """As `Text(column="target")` for retrieval, of a list whose captions are in a column `caption`."""
    rows = [{"image": f"{n}.png", "caption": f"drawing {n}"} for n in range(3)]
    for n in range(3):
        picture(tmp_path / f"{n}.png", 8, 8, n)
    source = c.Manifest(splits={"train": listed(tmp_path / "list.jsonl", rows)})
    found = opened(
        source,
        tmp_path,
        {"text": c.Text(column="target")},
        tokenizer=c.SentencePiece(vocabulary=45, byte_fallback=False),
    )
    assert [found[n].input("text") for n in range(3)] == ["drawing 0", "drawing 1", "drawing 2"]


def test_columns_that_are_not_read_are_named_where_a_tokenizer_has_no_text(tmp_path):
    noise(tmp_path / "a.wav", 0.5, 0)
    rows = [{"audio": "a.wav", "words_said": "one two"}]
    source = c.Manifest(splits={"train": listed(tmp_path / "list.jsonl", rows)})
    with pytest.raises(UserError, match=r"no text to train it on; nothing reads its columns 'words_said'"):
        opened(source, tmp_path, {}, tokenizer=c.SentencePiece(vocabulary=45, byte_fallback=False))
