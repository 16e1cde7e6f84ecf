"""Augmentation in a run: drawn by example, so the invariants hold with it; speeds are known to the packer."""

import dataclasses

import numpy as np
import pytest
from conftest import tiny

from mmjax import check
from mmjax import config as c
from mmjax.data.loader import Batches
from mmjax.train.build import build_layout, build_sampler


def augmented(**changes):
    config = tiny()
    speech = dataclasses.replace(config.model.encoders["speech"], **changes)
    model = dataclasses.replace(config.model, encoders={**config.model.encoders, "speech": speech})
    return dataclasses.replace(config, model=model)


EVERYTHING = c.SpeechAugmentation(
    reverberate=c.Reverberate(probability=0.5), noise=c.AddNoise(probability=0.5), gain=c.Gain(), masks=c.SpecAugment()
)


@pytest.mark.slow
def test_packing_and_division_hold_with_augmentation():
    subject = check.Subject(augmented(augment=EVERYTHING, denoise=c.SpectralGate()))
    plain = check.Subject(tiny())
    assert check.difference(subject.run(subject.batch)[1]["loss"], plain.run(plain.batch)[1]["loss"]) > 1e-3
    # What a long filter rounds depends on the place in the row, and quiet frames amplify it: 2e-6 with JAX 0.10, 3e-5 with 0.12.
    assert check.packing(subject) <= 1e-4
    assert check.emptiness(subject) == 0
    whole = subject.run(subject.batch)[1]
    mesh = check.Mesh(np.array(check.jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"))
    in_parts = check.divided(subject, mesh, micro_batches=4)
    assert check.difference(check.jax.tree.leaves((whole["loss"], whole["gradients"])), in_parts) <= 1e-5


def test_perturbed_recordings_take_the_room_that_the_sampler_gave_them(source):
    config = tiny()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, speed=c.SpeedPerturbation()))
    layout = build_layout(config, source.tokenizer)
    batches = Batches(source, layout, build_sampler(config, layout, source))
    found = set()
    for step in range(4):
        batch = batches[step]
        for number, row in enumerate(batches.sampler.rows(step)):
            for segment, (example, speed) in enumerate(zip(row.examples, row.speeds, strict=True), 1):
                if "speech" in row.subsets[segment - 1]:
                    hops = (batch["speech"].segments[number] == segment).sum()
                    assert abs(hops - source.sizes["speech"][example] / (0.9, 1.0, 1.1)[speed] / 160) <= 1
                    found.add(int(speed))
    assert found == {0, 1, 2} and not batches.skipped


def test_speeds_change_from_epoch_to_epoch_and_are_the_same_after_a_resume(source):
    config = tiny()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, speed=c.SpeedPerturbation()))
    layout = build_layout(config, source.tokenizer)
    sampler, again = build_sampler(config, layout, source), build_sampler(config, layout, source)
    seen = {}
    for step in range(60):
        for row in sampler.rows(step):
            for example, speed in zip(row.examples.tolist(), row.speeds.tolist(), strict=True):
                seen.setdefault(example, set()).add(speed)
    assert np.mean([len(speeds) > 1 for speeds in seen.values()]) > 0.5
    again.restore(sampler.state(40))
    for one, other in zip(sampler.rows(50), again.rows(50), strict=True):
        np.testing.assert_array_equal(one.speeds, other.speeds)
        np.testing.assert_array_equal(one.examples, other.examples)
