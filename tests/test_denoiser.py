"""Speech enhancement: noise is added in training, a mask takes it away, and a run does better than doing nothing."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from conftest import tiny

from mmjax import check, cli
from mmjax import config as c
from mmjax.errors import UserError
from mmjax.stream import Stream
from mmjax.tasks import Denoise, Encoded
from mmjax.train.build import build_model, build_source
from mmjax.train.validate import check_config

HOP = 160


def denoising(**changes):
    config = tiny(
        data=dataclasses.replace(
            tiny().data, subsets={"speech": 1.0}, rows={"speech": 328, "image": 128, "text": 16, "examples": 3}
        ),
        evaluation=c.Evaluation(subsets=("speech",), examples=8),
    )
    noise = c.SpeechAugmentation(noise=c.AddNoise(probability=1.0, minimum_snr=0.0, maximum_snr=0.0, colour="white"))
    model = config.model.clone(tasks={"clean": c.Denoise(reads="speech", by=noise)})
    return dataclasses.replace(config, model=model, **changes)


def test_a_mask_of_ones_is_the_identity_and_a_half_is_half():
    """At the ends of examples too, and where an example's last hops have no token."""
    draw = np.random.default_rng(0)
    segments = jnp.array([[1] * 6 + [2] * 5 + [0]])
    samples = Stream(jnp.asarray(draw.normal(size=(1, 12, HOP)), jnp.float32), segments, segments * 0)
    tokens = Stream(jnp.zeros((1, 3, 8)), jnp.array([[1, 2, 0]]), jnp.zeros((1, 3), jnp.int32))
    samples = samples._replace(segments=jnp.array([[1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0, 0]]))
    frequencies = 3 * HOP // 2 + 1
    encoded = Encoded({}, {"speech": tokens}, {"speech": samples}, None, {})

    @jax.jit
    def run(bias):
        mask = {"kernel": jnp.zeros((8, 4 * frequencies)), "bias": jnp.full(4 * frequencies, bias)}
        return Denoise(reads="speech").apply({"params": {"mask": mask}}, encoded).prediction.features

    inside = np.asarray(samples.mask)
    np.testing.assert_allclose(run(50.0)[inside], samples.features[inside], atol=1e-5)
    half, there = run(0.0), np.arange(12) < 7  # the hop before one without a token hears some of it
    np.testing.assert_allclose(half[0][there], 0.5 * samples.features[0][there], atol=1e-5)
    np.testing.assert_allclose(half[0, 9], samples.features[0, 9], atol=1e-5)
    assert not np.any(half[~inside])


@pytest.mark.slow
def test_the_invariants_hold():
    subject = check.Subject(denoising())
    with jax.default_matmul_precision("highest"):
        assert check.packing(subject) <= check.TOLERANCES["packing"]
        assert check.emptiness(subject) <= check.TOLERANCES["emptiness"]


def test_labels_are_the_clean_samples_and_the_encoder_hears_the_noise():
    """Without training the estimate is about half of the noisy speech: SI-SDR is the signal-to-noise ratio, 0 dB."""
    subject = check.Subject(denoising())
    model = build_model(subject.config.model)
    run = jax.jit(lambda p, b: model.apply({"params": p}, b, train=True, rngs={"augment": jax.random.key(0)}))
    outputs = run(subject.params, subject.batch)
    clean = outputs["clean"].labels
    np.testing.assert_array_equal(clean.features, subject.batch["speech"].features)
    untrained = {**subject.params, "tasks_clean": jax.tree.map(np.zeros_like, subject.params["tasks_clean"])}
    estimate = run(untrained, subject.batch)["clean"].prediction
    for number in np.unique(clean.segments[0])[1:]:
        own = np.asarray(clean.segments[0]) == number
        signal, noisy = (np.asarray(x.features[0][own], np.float64).reshape(-1) for x in (clean, estimate))
        noise = 2 * noisy - signal
        assert 10 * np.log10((signal @ signal) / (noise @ noise)) == pytest.approx(0.0, abs=0.1)


@pytest.mark.slow
def test_a_run_takes_noise_away(tmp_path, capsys):
    schedule = c.WarmupCosine(peak=1e-2, warmup=5, steps=60)
    config = denoising(steps=60, optimizer=c.Optimizer(schedule=schedule), log=c.Log(every_steps=10, tensorboard=False))
    (tmp_path / "config.json").write_text(c.to_json(config))
    run = str(tmp_path / "run")
    assert cli.main(["train", str(tmp_path / "config.json"), "--run-dir", run]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    ratios = [line["clean/si_sdr"] for line in lines if line["kind"] == "train"]
    assert ratios[0] == pytest.approx(0.0, abs=1.0) and ratios[-1] > 4.0
    # And in use: a recording with noise comes out nearer to the clean one.
    clean = build_source(config.data, "test")[0].input("speech")
    noise = np.random.default_rng(0).standard_normal(len(clean)) * np.sqrt(np.mean(clean**2))
    soundfile.write(tmp_path / "noisy.wav", (clean + noise).clip(-1, 1), 16_000)
    saved = tmp_path / "clean.wav"
    capsys.readouterr()
    command = ["predict", run, "--speech", str(tmp_path / "noisy.wav")]
    assert cli.main([*command, "--save", str(saved), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"clean": str(saved)}
    found, rate = soundfile.read(saved)
    assert rate == 16_000 and len(found) == len(clean)

    def si_sdr(estimate):
        scaled = estimate @ clean / (clean @ clean) * clean
        return 10 * np.log10(np.sum(scaled**2) / np.sum((estimate - scaled) ** 2))

    assert si_sdr(found) > si_sdr(clean + noise) + 3.0
    assert cli.main(command) == 0 and "--save FILE" in capsys.readouterr().out


def test_there_is_nothing_to_save_without_a_denoiser(run, tmp_path, capsys):
    assert cli.main(["predict", str(run), "--text", "is it a circle?", "--save", str(tmp_path / "x.wav")]) == 2
    assert "nothing to save" in capsys.readouterr().err


MASKS = c.SpeechAugmentation(masks=c.SpecAugment())


@pytest.mark.parametrize(
    "task, message",
    [
        (
            c.Denoise(reads="image"),
            "model.tasks.clean hides samples of its input, which model.encoders.image does not allow; speech would do",
        ),
        (c.Denoise(by=c.SpeechAugmentation()), "model.tasks.clean.by must augment samples"),
        (c.Denoise(by=MASKS), "model.tasks.clean.by must augment samples, and must not mask features"),
        (
            c.Denoise(by=c.SpeechAugmentation(telephone=c.TelephoneBand(sample_rate=8000))),
            "model.tasks.clean.by.telephone.sample_rate is 8000",
        ),
    ],
)
def test_tasks_that_do_not_fit_are_named(task, message):
    config = denoising()
    with pytest.raises(UserError, match=re.escape(message)):
        check_config(dataclasses.replace(config, model=config.model.clone(tasks={"clean": task})))


def test_the_encoder_must_not_change_the_samples_once_more():
    config = denoising()
    noisy = config.model.encoders["speech"].clone(augment=c.SpeechAugmentation(noise=c.AddNoise()))
    model = config.model.clone(encoders={**config.model.encoders, "speech": noisy})
    with pytest.raises(UserError, match=r"speech.augment changes samples .* set it in model.tasks.clean.by instead"):
        check_config(dataclasses.replace(config, model=model))
