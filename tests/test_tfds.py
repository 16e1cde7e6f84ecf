"""Data sets of TFDS: the ready fields fit what TFDS's builders declare, and nothing of it needs TensorFlow.

Nothing can be downloaded for a test, so TFDS's own machinery prepares a few made-up examples of each data set with the
features that its own builder declares (tests/tfds_builders.py), and TFDS's own data_source says what they hold.
"""

import dataclasses
import io
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from conftest import tiny
from tensorboardX.record_writer import RecordWriter
from tfds_builders import EXAMPLES

from mmjax import cli
from mmjax import config as c
from mmjax.data.audio import read_audio
from mmjax.data.labels import alternatives
from mmjax.data.shards import ShardsRecords
from mmjax.data.tfds import TFDSRecords
from mmjax.data.tfds_fields import READY, ready
from mmjax.data.tfrecord import TFRecords, masked_crc32c
from mmjax.errors import UserError
from mmjax.train.build import build_source
from mmjax.train.loop import train

CONFIGS = {"librispeech": "librispeech/default", "xtreme_s": "xtreme_s/fleurs.en_us"}
SETS = [CONFIGS.get(name, name) for name in READY] + ["librispeech/lazy_decode"]
RATE = {"common_voice": 48_000}  # which TFDS does not note
BOTH = {split: split for split in EXAMPLES}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """All of them, as ArrayRecord."""
    home = tmp_path_factory.mktemp("tfds")
    program = pathlib.Path(__file__).with_name("tfds_builders.py")
    done = subprocess.run([sys.executable, program, home, *SETS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return home


@pytest.fixture
def place(sets, monkeypatch, tmp_path):
    """Where commands look for data sets, and keep indices."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(sets))
    monkeypatch.setenv("MMJAX_DATA", str(tmp_path / "data"))
    return sets


def home_of(sets, name):
    (found,) = sets.glob(f"{name}/**/features.json")
    return found.parent


def reference(sets, name, split):
    """What TFDS reads of a split, in the same order."""
    return pickle.loads((home_of(sets, name) / f"reference-{split}.pickle").read_bytes())


def opened(sets, name, split="train", **options):
    return TFDSRecords(split, name=name, directory=str(sets), sample_rate=RATE.get(name), **options)


@pytest.mark.parametrize("name", SETS)
def test_ready_fields_are_what_tfds_reads(sets, name):
    for split, count in EXAMPLES.items():
        found, expected = opened(sets, name, split), reference(sets, name, split)
        assert len(found) == len(expected) == count
        for number, values in enumerate(expected):
            record = found[number]
            fields = ready(name)
            assert {*record.inputs, *record.labels, *record.tags, "name"} == {*fields, "name"}
            for field, path in fields.items():
                if field == "speech" and isinstance(values[path], np.ndarray):
                    wanted = values[path]
                    kind = "float32" if np.issubdtype(wanted.dtype, np.floating) else "int16"
                    np.testing.assert_array_equal(
                        soundfile.read(io.BytesIO(record.inputs["speech"][0].source), dtype=kind)[0], wanted
                    )
                else:  # texts, names of classes, and files as they are
                    found_here = {**record.inputs, **record.labels, **record.tags, "name": record.name}[field]
                    pieces = (
                        [getattr(one, "source", one) for one in found_here]
                        if isinstance(found_here, list)
                        else found_here
                    )
                    assert pieces == ([values[path]] if isinstance(found_here, list) else values[path])


def test_the_rate_is_the_one_that_the_data_set_declares(sets):
    declared = {"speech_commands": 16_000, "libritts": 24_000, "savee": 44_100, "vctk": 48_000, "spoken_digit": 8_000}
    for name, rate in (declared | RATE).items():
        assert soundfile.info(io.BytesIO(opened(sets, name)[0].inputs["speech"][0].source)).samplerate == rate
    with pytest.raises(UserError, match="common_voice does not state the sample rate .* set data.source.sample_rate"):
        TFDSRecords("train", name="common_voice", directory=str(sets))


def test_tensorflow_is_never_imported(sets):
    program = (  # TensorFlow is there, and importing it is an error
        "import importlib.machinery, sys\n"
        "class Refuse:\n"
        "    def find_spec(name, *_):\n"
        "        return importlib.machinery.ModuleSpec(name, Refuse) if name == 'tensorflow' else None\n"
        "    def create_module(spec):\n"
        "        raise AssertionError('TensorFlow is imported')\n"
        "    def exec_module(module):\n"
        "        pass\n"
        "sys.meta_path.insert(0, Refuse)\n"
        "from mmjax.data.tfds import TFDSRecords\n"
        "for name in ('librispeech/default', 'librispeech/lazy_decode', 'coco_captions', 'imdb_reviews'):\n"
        "    found = TFDSRecords('train', name=name, directory=sys.argv[1])\n"
        "    assert all(found[number] for number in range(len(found)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, sets], capture_output=True, text=True)
    assert done.returncode == 0 and "TensorFlow" not in done.stdout + done.stderr, done.stderr


def test_a_few_lines_of_config_are_enough_for_other_features(sets):
    fields = {"image": "image", "answer": "species", "text": "label", "name": "file_name"}
    found, expected = opened(sets, "oxford_iiit_pet", fields=fields), reference(sets, "oxford_iiit_pet", "train")
    assert [(r.labels.get("answer"), r.inputs.get("text")) for r in map(found.__getitem__, range(6))] == [
        (values["species"], values["label"]) for values in expected
    ]
    captions = opened(sets, "coco_captions", fields={"target": "captions/text/1", "answer": "image/id"})
    expected = reference(sets, "coco_captions", "train")
    assert captions[2].labels.get("target") == expected[2]["captions/text/1"] and captions[2].labels.get(
        "answer"
    ) == str(expected[2]["image/id"])
    every = opened(sets, "coco_captions", fields={"target": "captions/text/*"})[2].labels["target"]
    assert every == expected[2]["captions/text/0"]
    assert list(alternatives(every)) == [expected[2][f"captions/text/{number}"] for number in range(2)]
    few = opened(sets, "coco_captions", fields={"target": "captions/text/2", "image": "image"})
    assert few[0].labels.get("target") is None and few[0].inputs.get("image")  # each has two
    half = opened(sets, "lm1b", "train[50%:]+test[:1]")
    texts = [values["text"] for values in reference(sets, "lm1b", "train")[3:] + reference(sets, "lm1b", "test")[:1]]
    assert [half[number].inputs.get("text") for number in range(4)] == texts


def test_a_builder_of_ones_own_needs_no_tensorflow_at_all(tmp_path):
    """Encoded files as bytes, numbers, and classes that are missing."""
    import tensorflow_datasets as tfds

    kinds = tfds.features
    draw = np.random.default_rng(0)
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.1 * draw.standard_normal(800), 8_000, format="OGG")
    measured = draw.standard_normal((2, 3)).astype(np.float32)

    class Mine(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = tmp_path

        def _info(self):
            features = {
                "sound": kinds.Tensor(shape=(), dtype=np.object_),
                "class": kinds.ClassLabel(names=["no", "yes"]),
                "plain": kinds.Tensor(shape=(2, 3), dtype=np.float32),
                "count": kinds.Scalar(np.int32),
                "packed": kinds.Tensor(shape=(None, 3), dtype=np.float32, encoding="zlib"),
                "one": kinds.Scalar(np.float32),
                "tags": kinds.Sequence(kinds.ClassLabel(names=["a", "b"])),
            }
            return tfds.core.DatasetInfo(builder=self, features=kinds.FeaturesDict(features))

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            same = {"sound": buffer.getvalue(), "plain": measured, "packed": measured, "count": 7, "tags": [1, 0]}
            yield 0, {**same, "class": 1, "one": 0.5}
            yield 1, {**same, "class": -1, "one": np.nan}

    tfds.disable_progress_bar()
    Mine(data_dir=tmp_path, file_format="array_record").download_and_prepare()

    def read(**fields):
        found = TFDSRecords("train", name="mine", directory=str(tmp_path), fields={"speech": "sound", **fields})
        return sorted((found[number] for number in range(2)), key=lambda record: record.labels.get("answer") is None)

    first, second = read(answer="class", task="tags/1")
    assert first.inputs["speech"][0].source == second.inputs["speech"][0].source == buffer.getvalue()
    assert (first.labels.get("answer"), second.labels.get("answer"), first.tags.get("task")) == ("yes", None, "a")
    assert read(answer="count")[0].labels.get("answer") == "7"
    for path in ("plain", "packed"):
        np.testing.assert_array_equal(read(answer=path)[0].labels.get("answer"), measured.ravel())
    ones = TFDSRecords("train", name="mine", directory=str(tmp_path), fields={"answer": "one"})
    found = []
    for number in range(2):
        try:
            found.append(ones[number].labels.get("answer"))
        except UserError as error:
            assert "is damaged: a label is not a finite number" in str(error)
    assert found == [(0.5,)]


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"name": "librispech"},
            "has not prepared librispech in .*did you mean 'librispeech'.*array_record'.*extra 'tf'",
        ),
        ({"name": "lm1b:9.9.9"}, "has not prepared lm1b:9.9.9 in "),
        ({"name": "my set"}, "'my set' is not a TFDS name"),
        ({"name": "librispeech"}, "several configs; write one of librispeech/default, librispeech/lazy_decode"),
        ({"name": "lm1b", "split": "dev"}, "lm1b has no split 'dev' .*; it has "),
        ({"name": "lm1b", "fields": {"text": "txt"}}, "lm1b has no feature 'txt'; did you mean 'text'"),
        ({"name": "lm1b", "fields": {"txet": "text"}}, "there is no 'txet'; did you mean 'text'"),
        (
            {"name": "cifar10", "fields": {"speech": "image"}},
            "'image' of cifar10 is image, which cannot be used as 'speech'",
        ),
        (
            {"name": "coco_captions", "fields": {"target": "captions/text"}},
            "no feature 'captions/text'; did you mean 'captions/text/0'",
        ),
        (
            {"name": "coco_captions", "fields": {"answer": "objects/bbox/0"}},
            "is BBoxFeature in a list, which cannot be used as 'answer'",
        ),
    ],
)
def test_what_cannot_be_read_is_named_with_its_remedy(sets, options, message):
    options = {"split": "train", "directory": str(sets), **options}
    with pytest.raises(UserError, match=message):
        TFDSRecords(options.pop("split"), **options)


def test_a_data_set_that_is_not_among_the_ready_ones_lists_its_features(sets, tmp_path):
    shutil.copytree(home_of(sets, "samsum"), tmp_path / "mine" / "1.0.0")
    with pytest.raises(UserError, match="the fields of mine are not built in.*dialogue, id, summary"):
        TFDSRecords("train", name="mine", directory=str(tmp_path))


def test_damage_is_named(sets, tmp_path):
    home = tmp_path / "lm1b" / "1.1.0"
    shutil.copytree(home_of(sets, "lm1b"), home)
    (record_file,) = home.glob("*-train.array_record*")
    data = bytearray(record_file.read_bytes())
    data[data.find(b"text ")] ^= 1
    record_file.write_bytes(data)
    found = TFDSRecords("train", name="lm1b", directory=str(tmp_path))
    with pytest.raises(UserError, match="lm1b train . is damaged"):
        [found[number] for number in range(len(found))]
    record_file.unlink()
    with pytest.raises(UserError, match=f"lacks .*{record_file.name}; prepare it again"):
        TFDSRecords("train", name="lm1b", directory=str(tmp_path))
    (home / "features.json").write_text('{"type": "FeaturesDict", "content": {}}')
    with pytest.raises(UserError, match="old version of TFDS"):
        TFDSRecords("train", name="lm1b", directory=str(tmp_path))


def test_inspect_and_filters_work_on_it(place, capsys, tmp_path):
    page = tmp_path / "page.html"
    command = ["data", "inspect", "tfds:librispeech/default", "--split", "test", "--json", "-o", str(page)]
    assert cli.main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["examples"] == 4 and found["sizes"]["speech"]["examples"] == 4
    assert page.read_text().count("<audio") == 4
    data = dataclasses.replace(
        tiny().data,
        source=c.TFDS(name="librispeech/default", splits=BOTH),
        directory=str(tmp_path),
        filters=c.Filters(longest=0.33, largest_share_dropped=0.5),
    )
    kept = build_source(data, "train")
    seconds = np.array([len(values["speech"]) / 16_000 for values in reference(place, "librispeech/default", "train")])
    assert kept.dropped == {"too long": int((seconds > 0.33).sum())} and 0 < len(kept) < 6
    np.testing.assert_allclose(np.sort(kept.sizes["speech"]), np.sort(seconds[seconds <= 0.33] * 16_000))


def test_other_fields_have_another_index(place, tmp_path):
    sources = [c.TFDS(name="samsum", splits=BOTH, fields={"text": path}) for path in ("dialogue", "summary")]
    data = [dataclasses.replace(tiny().data, source=source, directory=str(tmp_path)) for source in sources]
    assert build_source(data[0], "train")[0].inputs.get("text").startswith("dialogue")
    assert build_source(data[1], "train")[0].inputs.get("text").startswith("summary")
    assert len(list((tmp_path / "indices").iterdir())) == 2


def as_tfrecord(home):
    """Rewrites a data set in TFDS's other form, by the writer of another library."""
    for path in home.glob("*.array_record-*"):
        from array_record.python.array_record_module import ArrayRecordReader

        reader = ArrayRecordReader(str(path))
        writer = RecordWriter(str(path).replace("array_record", "tfrecord"))
        for data in reader.read_all():
            writer.write(data)
        writer.close()
        path.unlink()
    about = json.loads((home / "dataset_info.json").read_text())
    (home / "dataset_info.json").write_text(json.dumps({**about, "fileFormat": "tfrecord"}))


def test_shards_of_it_hold_flac_whatever_form_it_has(place, tmp_path, monkeypatch, capsys):
    def built(out):
        assert cli.main(["data", "build", "tfds:speech_commands", "-o", str(out), "--json"]) == 0
        assert {s: made["examples"] for s, made in json.loads(capsys.readouterr().out).items()} == EXAMPLES
        return [ShardsRecords(str(out), split)[number] for split, count in EXAMPLES.items() for number in range(count)]

    records = built(tmp_path / "one")
    expected = [values for split in EXAMPLES for values in reference(place, "speech_commands", split)]
    for record, values in zip(records, expected, strict=True):
        assert record.inputs["speech"][0].source[:4] == b"fLaC"
        np.testing.assert_array_equal(
            soundfile.read(io.BytesIO(record.inputs["speech"][0].source), dtype="int16")[0], values["audio"]
        )
    shutil.copytree(place / "speech_commands", tmp_path / "tfrecord" / "speech_commands")
    as_tfrecord(home_of(tmp_path / "tfrecord", "speech_commands"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfrecord"))
    with pytest.raises(
        UserError, match="holds tfrecord files.*mmjax data build CONFIG -o DIR, or.*tfds:speech_commands"
    ):
        TFDSRecords("train", name="speech_commands")
    assert built(tmp_path / "two") == records


def test_tfrecord_files_are_read_by_number_and_damage_is_seen(tmp_path):
    path = tmp_path / "x.tfrecord"
    writer = RecordWriter(str(path))
    contents = [os.urandom(size) for size in (0, 1, 100, 70_000)]
    for data in contents:
        writer.write(data)
    writer.close()
    part = lambda skip, take: dataclasses.make_dataclass("Part", ["filename", "skip", "take"])(path, skip, take)  # noqa: E731
    found = TFRecords([part(1, 2), part(0, 4)])
    assert [found[number] for number in range(len(found))] == contents[1:3] + contents
    assert masked_crc32c(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF
    with pytest.raises(UserError, match="ends after 4 of 5 records"):
        TFRecords([part(0, 5)])
    data = path.read_bytes()
    path.write_bytes(data[:-3])
    with pytest.raises(UserError, match="is damaged at record 3"):
        TFRecords([part(0, 4)])
    path.write_bytes(data[:16] + bytes([data[16] ^ 1]) + data[17:])  # the length of the second
    with pytest.raises(UserError, match="is damaged at record 1"):
        TFRecords([part(0, 4)])


def test_a_data_set_in_both_forms_is_read_at_random(sets, tmp_path):
    shutil.copytree(home_of(sets, "mnist"), tmp_path / "mnist" / "3.0.1")
    about = tmp_path / "mnist" / "3.0.1" / "dataset_info.json"
    both = {"fileFormat": "tfrecord", "alternativeFileFormats": ["array_record"]}
    about.write_text(json.dumps({**json.loads(about.read_text()), **both}))
    assert TFDSRecords("train", name="mnist", directory=str(tmp_path))[0] == opened(sets, "mnist")[0]


def experiment(place, tmp_path, **parts):
    return dataclasses.replace(
        tiny(),
        steps=2,
        optimizer=c.Optimizer(schedule=c.Constant(peak=1e-2)),
        checkpoint=c.Checkpoint(every_steps=None),
        **parts,
    )


def losses(directory):
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line and line.get("kind", "train") == "train"]


@pytest.mark.slow
def test_speech_commands_train(place, tmp_path):
    config = experiment(
        place,
        tmp_path,
        data=c.Data(
            source=c.TFDS(name="speech_commands", splits=BOTH),
            directory=str(tmp_path),
            batch_rows=2,
            rows={"speech": 160, "examples": 3},
            subsets={"speech": 1.0},
        ),
        model=c.Multimodal(
            encoders={
                "speech": c.Conformer(
                    layers=1, width=16, heads=2, stem=c.StridedStem(channels=4), convolution=c.Convolution(kernel=4)
                )
            },
            fusion=c.Add(width=16),
            tasks={"answer": c.Classify(outputs=6)},
        ),
        evaluation=c.Evaluation(subsets=("speech",)),
    )
    train(config, tmp_path / "run")
    assert len(losses(tmp_path / "run")) == 2 and np.isfinite(losses(tmp_path / "run")).all()


@pytest.mark.slow
def test_cifar10_trains(place, tmp_path):
    config = experiment(
        place,
        tmp_path,
        data=c.Data(
            source=c.TFDS(name="cifar10", splits=BOTH),
            directory=str(tmp_path),
            batch_rows=2,
            rows={"image": 48, "examples": 3},
            subsets={"image": 1.0},
        ),
        model=c.Multimodal(
            encoders={"image": c.ViT(patch=8, image_size=32, layers=1, width=16, heads=2, mlp=32)},
            fusion=c.Add(width=16),
            tasks={"answer": c.Classify(outputs=6)},
        ),
        evaluation=c.Evaluation(subsets=("image",)),
    )
    train(config, tmp_path / "run")
    assert len(losses(tmp_path / "run")) == 2 and np.isfinite(losses(tmp_path / "run")).all()


def test_samples_of_more_than_16_bits_are_not_guessed_at(sets, tmp_path):
    home = tmp_path / "gtzan" / "1.0.0"
    shutil.copytree(home_of(sets, "gtzan"), home)
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    (path,) = home.glob("*-train.array_record*")
    written = tf_example_pb2.Example.FromString(ArrayRecordReader(str(path)).read_all()[0])
    written.features.feature["audio"].int64_list.value[5] = 2**15
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for _ in range(EXAMPLES["train"]):
        writer.write(written.SerializeToString())
    writer.close()
    with pytest.raises(UserError, match="gtzan train 0 holds samples from .* to 32768, which are not 16-bit samples"):
        TFDSRecords("train", name="gtzan", directory=str(tmp_path))[0]


def test_recordings_are_as_loud_as_they_were(sets):
    samples = read_audio(opened(sets, "crema_d")[0].inputs["speech"][0].source)
    np.testing.assert_allclose(samples, reference(sets, "crema_d", "train")[0]["audio"] / 2**15, atol=1e-7)
