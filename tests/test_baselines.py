"""The encoders that the field began with, against their references and packed."""

import jax
import numpy as np
import pytest
from test_models import images, speech
from untrained import parameters

from mmjax.models import BiLSTM, ConvNet, LogMel
from mmjax.models.recurrent import lstm


@pytest.mark.reference
def test_lstm_equals_torch_on_packed_sequences():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    reference = torch.nn.LSTM(6, 5, bidirectional=True, batch_first=True)
    lengths = [7, 1, 12, 4]
    inputs = [torch.randn(n, 6) for n in lengths]
    row = np.zeros((1, 30, 6), np.float32)
    segments, at = np.zeros((1, 30), np.int32), 0
    for number, x in enumerate(inputs, 1):
        row[0, at : at + len(x)], segments[0, at : at + len(x)] = x, number
        at += len(x) + number % 2  # some with a gap, some without
    row[segments == 0] = 1e3
    weights = {name: value.detach().numpy() for name, value in reference.named_parameters()}
    for suffix, backward in (("", False), ("_reverse", True)):
        gates = (
            row @ weights[f"weight_ih_l0{suffix}"].T + weights[f"bias_ih_l0{suffix}"] + weights[f"bias_hh_l0{suffix}"]
        )
        ours = np.asarray(
            jax.jit(lstm, static_argnums=3)(gates, weights[f"weight_hh_l0{suffix}"].T, segments, backward)
        )
        for number, x in enumerate(inputs, 1):
            theirs = reference(x[None])[0][0].detach().numpy()[:, 5 * backward : 5 * backward + 5]
            np.testing.assert_allclose(ours[segments == number], theirs, atol=1e-5)
        assert not np.any(ours[segments == 0])


@pytest.mark.parametrize("stem", ["stack", "full"])
@pytest.mark.slow
def test_recurrent_encoders_give_the_same_packed_and_alone(stem):
    model = BiLSTM(front_end=LogMel(), layers=2, width=16, stem=stem, stem_channels=4)
    lengths = [3, 5, 8, 31, 33]
    packed = speech(*lengths)
    params, apply = {"params": parameters(model, packed)}, jax.jit(model.apply)
    out = jax.device_get(apply(params, packed))
    for number, length in enumerate(lengths, 1):
        alone = jax.device_get(apply(params, speech(length, room=64)))
        ours = out.features[out.segments == number]
        assert len(ours) == -(-(length - 2) // 4)
        np.testing.assert_allclose(ours, alone.features[alone.segments > 0], atol=1e-5)


def test_convolutional_encoder_sees_its_own_picture_alone():
    model, two = ConvNet(patch=4, image_size=16, width=16), images(2, 4, 4)
    params, apply = {"params": parameters(model, two)}, jax.jit(model.apply)
    features = two.features.copy()
    features[:, 16:] = 0
    out, other = jax.device_get([apply(params, stream) for stream in (two, two._replace(features=features))])
    np.testing.assert_array_equal(out.features[:, :16], other.features[:, :16])
    assert np.abs(out.features[:, 16:] - other.features[:, 16:]).max() > 1e-3


def test_convolutional_encoder_puts_patches_together_as_they_were():
    """Shifting the picture by a whole patch shifts the tokens: away from the borders, where zeros come in."""
    model = ConvNet(patch=4, image_size=32, width=8)
    picture = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)

    def tokens(pixels):
        stream = images(1, 8, 4)
        patches = pixels.reshape(8, 4, 8, 4, 3).transpose(0, 2, 1, 3, 4).reshape(1, 64, 48)
        return np.asarray(apply(params, stream._replace(features=patches)).features).reshape(8, 8, 8)

    params, apply = {"params": parameters(model, images(1, 8, 4))}, jax.jit(model.apply)
    before, after = tokens(picture), tokens(np.roll(picture, (4, 8), (0, 1)))
    np.testing.assert_allclose(before[2:5, 2:4], after[3:6, 4:6], atol=1e-5)
