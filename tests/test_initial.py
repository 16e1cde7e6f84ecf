"""`Experiment.initial`: which parameters a run takes from other runs and imports, and what it says about it."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from conftest import tiny

from mmjax import config as c
from mmjax.check import Subject
from mmjax.errors import UserError
from mmjax.interchange import directories
from mmjax.models.positions import resize_positions
from mmjax.models.roles import by_path
from mmjax.parallel.mesh import make_mesh
from mmjax.train.directory import UNTRAINED
from mmjax.train.initial import load_initial
from mmjax.train.program import begin


@pytest.fixture(scope="module")
def state(source):
    """A state of the tiny model with the seed 7."""
    config = dataclasses.replace(tiny(), seed=7)
    subject = Subject(config)
    return begin(config, subject.model, subject.layout, make_mesh(devices=jax.devices()[:1])).initialise()


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


def loaded(state, initial, **model):
    config = dataclasses.replace(
        tiny(), model=dataclasses.replace(tiny().model, **model), initial={k: v and str(v) for k, v in initial.items()}
    )
    return by_path(load_initial(config, state).params)


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
