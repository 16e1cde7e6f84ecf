"""`Experiment.initial`: which parameters a run takes from other runs and imports, and what it says about it."""

import dataclasses
import functools
from contextlib import nullcontext

import jax
import numpy as np
import pytest
from conftest import tiny

from mmjax import config as c
from mmjax.check import Subject
from mmjax.data.text import Tokenizer
from mmjax.errors import UserError
from mmjax.interchange import directories
from mmjax.models.positions import resize_positions
from mmjax.models.roles import by_path
from mmjax.parallel.mesh import make_mesh
from mmjax.train.directory import UNTRAINED
from mmjax.train.groups import grouped
from mmjax.train.initial import _check_same, check_initialised, load_initial
from mmjax.train.program import begin


@functools.cache
def begun():
    """The start of the tiny model with the seed 7, its first state, and its tokenizer."""
    config = dataclasses.replace(tiny(), seed=7)
    subject = Subject(config)
    start = begin(config, subject.model, subject.layout, make_mesh(devices=jax.devices()[:1]))
    return start.specs, start.initialise(), subject.source.tokenizer


@pytest.fixture(scope="module")
def state():
    return begun()[1]


@pytest.fixture(scope="module")
def imported(state, tmp_path_factory):
    """An import with the tiny model's speech encoder under another name, its parameters larger by 1, and a classifier."""
    directory = tmp_path_factory.mktemp("import") / "speech"
    arrays = {
        path.replace("encoders.speech.", "encoders_audio/").replace(".", "/"): np.asarray(x) + 1
        for path, x in by_path(state.params).items()
        if path.startswith("encoders.speech.")
    }
    arrays |= {"tasks_words/logits/kernel": np.ones((16, 5), np.float32)}
    arrays |= {"tasks_words/logits/bias": np.ones(5, np.float32)}
    model = c.Multimodal(
        encoders={"audio": tiny().model.encoders["speech"]},
        tasks={"words": c.Classify(reads="audio", outputs=5, pool=c.MeanPool())},
    )
    config = c.to_dict(dataclasses.replace(tiny(), model=model))
    directories.write(directory, arrays, UNTRAINED, {"config.json": config})
    return directory


@pytest.mark.parametrize(
    "groups, initial, message",
    [
        (
            {"encoders.speech": c.Group(frozen=True)},
            {},
            "encoders.speech is frozen .* initial={'encoders.speech': DIRECTORY}",
        ),
        ({"fusion": c.Group(frozen_until=3)}, {}, "fusion is frozen .* 'fusion': None if random values are meant"),
        ({"encoders": c.Group(frozen=True)}, {"encoders.image": "runs/x"}, "encoders.speech is frozen"),
        (
            {"encoders": c.Group(frozen=True)},
            {"encoders.*.layers": "runs/x"},
            "nothing about encoders.image.embedding.bias",
        ),
        ({"**.norm": c.Group(frozen=True)}, {"encoders": None, "tasks": None}, "nothing about fusion.norm"),
        (
            {},
            {"encoders.imag": None},
            r"initial\['encoders.imag'\] selects no parameter; did you mean 'encoders.image'",
        ),
        ({"encoders": c.Group(frozen=True)}, {"encoders.image": "runs/x", "encoders": None}, None),
        ({"tasks": c.Group(rate=0.5)}, {}, None),
    ],
)
def test_a_frozen_part_that_nothing_initialises_is_an_error(groups, initial, message):
    """Usually a pretrained part whose directory was forgotten: it would stay random for the whole run."""
    specs, *_ = begun()
    config = dataclasses.replace(tiny(), initial=initial)
    wrong = nullcontext() if message is None else pytest.raises(UserError, match=message)
    with wrong:
        check_initialised(config, specs, grouped(groups, specs))
    check_initialised(c.smoke(config), specs, grouped(groups, specs))  # its model has no source


def loaded(state, initial, tokenizer=None, **model):
    config = dataclasses.replace(
        tiny(), model=dataclasses.replace(tiny().model, **model), initial={k: v and str(v) for k, v in initial.items()}
    )
    return by_path(load_initial(config, state, begun()[0], tokenizer or begun()[2]).params)


def changed(state, params):
    before = by_path(state.params)
    return {path for path, x in params.items() if not np.array_equal(x, before[path])}


def test_an_encoder_of_an_import_under_another_name(state, imported, capfd):
    params = loaded(state, {"encoders.speech": imported})
    before = by_path(state.params)
    assert changed(state, params) == {path for path in params if path.startswith("encoders.speech.")}
    assert all(np.array_equal(params[path], before[path] + 1) for path in changed(state, params))
    said = " ".join(capfd.readouterr().err.split())
    count = sum(x.size for path, x in params.items() if path.startswith("encoders.speech."))
    assert f"encoders.speech from {imported}: {count:,} parameters" in said
    assert "new: encoders.image (" in said and "new: encoders.speech" not in said
    assert f"unused in {imported}: tasks.words (85)" in said


def test_the_first_pattern_counts_and_none_stays_random(state, run):
    initial = {"**.norm": None, "encoders.speech": run, "tasks.*.logits.kernel": run, "tasks": None}
    params, theirs = loaded(state, initial), by_path(_run_params(run))
    wanted = {
        path
        for path in params
        if ".norm." not in path
        and (path.startswith("encoders.speech.") or (path.startswith("tasks.") and path.endswith("kernel")))
    }
    assert all(np.array_equal(params[path], theirs[path]) for path in wanted)
    assert changed(state, params) == {
        path for path in wanted if not np.array_equal(theirs[path], by_path(state.params)[path])
    }


def test_a_whole_run(state, run):
    params, theirs = loaded(state, {"**": run}), by_path(_run_params(run))
    assert all(np.array_equal(params[path], theirs[path]) for path in params)


def test_a_part_of_a_source_by_its_path(state, run):
    params = loaded(state, {"encoders.text.layers.mlp": f"{run}:encoders.image.layers.mlp"})
    theirs = by_path(_run_params(run))
    assert np.array_equal(params["encoders.text.layers.mlp.up.kernel"], theirs["encoders.image.layers.mlp.up.kernel"])


def test_positions_of_images_of_another_size_are_resized(run):
    image = dataclasses.replace(tiny().model.encoders["image"], image_size=48)
    theirs = _run_params(run)["encoders_image"]["place"]["embedding"]
    ours = image.adapted("place.embedding", theirs, tiny().model.encoders["image"])
    np.testing.assert_array_equal(ours, resize_positions(theirs, (8, 8), (6, 6), "bicubic"))
    assert image.adapted("norm.scale", theirs, tiny().model.encoders["image"]) is theirs


@functools.cache
def _run_params(directory):
    from mmjax.run import Run

    return Run(directory).params


@pytest.mark.parametrize(
    "initial, message",
    [
        (
            {"encoders.speach": "RUN"},
            r"initial\['encoders.speach'\] selects no parameter; did you mean 'encoders.speech'",
        ),
        ({"**": "RUN", "fusion": "RUN"}, r"initial\['fusion'\] has no effect: patterns before it select the same"),
        (
            {"tasks.answer": "IMPORT"},
            r"tasks.answer.logits.bias has the shape \[13\], but tasks.words.logits.bias of .* has \[5\]",
        ),
        ({"fusion": "IMPORT"}, "has no fusion; there are encoders, tasks"),
        ({"encoders": "IMPORT"}, "has no encoders.image"),
        ({"tasks.answer": "RUN:tasks.answers"}, "has no tasks.answers; did you mean 'tasks.answer'"),
        (
            {"encoders.speech": "RUN:encoders.image"},
            "model.encoders.speech.class is 'Conformer', but 'ViT'|has no encoders.image",
        ),
        ({"encoders.image": "IMPORT"}, "has no encoders.audio.*put before this pattern: 'encoders.image"),
        ({"encoders.speech": "gs://bucket/run"}, "mount the bucket"),
        ({"encoders.speech": "nowhere"}, "nowhere is not a run directory"),
    ],
)
def test_what_cannot_be_loaded_is_named(state, run, imported, initial, message):
    places = {"RUN": str(run), "IMPORT": str(imported)}
    initial = {
        pattern: places.get(where.split(":")[0], where.split(":")[0]) + where[len(where.split(":")[0]) :]
        for pattern, where in initial.items()
    }
    with pytest.raises(UserError, match=message):
        loaded(state, initial)


def test_other_settings_of_a_part_are_refused_and_missing_parameters_are_named(state, imported):
    speech = tiny().model.encoders["speech"]
    for change, key, value in (({"norms": c.Norms(epsilon=1e-3)}, "norms.epsilon", 1e-3), ({"heads": 4}, "heads", 4)):
        encoders = {**tiny().model.encoders, "speech": dataclasses.replace(speech, **change)}
        with pytest.raises(UserError, match=f"model.encoders.speech.{key} is {value}, but .* in .*use the same part"):
            loaded(state, {"encoders.speech": imported}, encoders=encoders)


def test_an_imported_whisper_may_leave_out_silence():
    theirs = c.WhisperEncoder.preset("tiny", pad_to_length=True)
    _check_same("encoders.speech", theirs.clone(trim=True, pad_to_length=False), theirs, "imported/whisper")
    with pytest.raises(UserError, match="encoders.speech.heads is 3, but 6 in imported/whisper"):
        _check_same("encoders.speech", theirs.clone(heads=3), theirs, "imported/whisper")


def test_tables_for_the_ids_of_another_tokenizer_are_refused_unless_they_are_named(state, run):
    """(They were loaded without a word: each id got the vector of another piece.)"""
    other = Tokenizer.train(["other words than those of the run"], 80)
    with pytest.raises(
        UserError, match=r"encoders.text.embedding.embedding has values for the ids of .*id \d+ is '.*there"
    ):
        loaded(state, {"encoders.text": run}, tokenizer=other)
    with pytest.raises(UserError, match=r"tasks.transcript.logits.bias has values for the ids"):
        loaded(state, {"tasks": run}, tokenizer=other)
    without = loaded(state, {"encoders.text.embedding": None, "encoders.text": run}, tokenizer=other)
    table, theirs = "encoders.text.embedding.embedding", by_path(_run_params(run))
    assert not np.array_equal(without[table], theirs[table])
    named = {"encoders.text.embedding": f"{run}:encoders.text.embedding", "encoders.text": run}
    assert np.array_equal(loaded(state, named, tokenizer=other)[table], theirs[table])
    loaded(state, {"encoders.speech": run}, tokenizer=other)  # has no table


def test_a_tokenizer_that_adds_pieces_or_has_another_form_has_the_same_ids(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    ours = begun()[2]
    pieces = sorted(ours.pieces_by_id().items())
    model = tokenizers.models.WordLevel(
        {piece: i for i, piece in [*pieces, (len(ours), "one more")]}, unk_token="<unk>"
    )
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    assert ours.other_meaning(Tokenizer.load(tmp_path / "tokenizer.json")) is None
