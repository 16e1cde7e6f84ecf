"""Language models that hear and see: media in packed conversations, through gated cross-attention and soft tokens."""

from functools import cache, partial

import jax
import numpy as np
import pytest

from mmjax.errors import UserError
from mmjax.models import (
    MLP,
    BlockStyle,
    GatedCrossAttention,
    Multimodal,
    Resampler,
    SoftTokens,
    TextDecoder,
    TokenIds,
    ViT,
    WhisperEncoder,
    WhisperLogMel,
)
from mmjax.models.adapters import LoRA, adapted, adapted_kernels, is_adapted, merged_kernels, without_media
from mmjax.stream import PICTURE, RECORDING, Stream
from mmjax.tasks import CausalLM
from mmjax.train.step import measure, unboxed

LLAMA = BlockStyle(norm="rms", activation="silu", gated=True, bias=False, key_value_heads=2)
DECODER = TextDecoder(vocabulary=50, layers=5, width=32, heads=4, mlp=48, cross_attention=False, block=LLAMA)
IMAGE = ViT(patch=4, image_size=8, layers=1, width=16, heads=2, mlp=32)  # four patches
SPEECH = WhisperEncoder(front_end=WhisperLogMel(bins=8), layers=1, width=16, heads=2, mlp=32, length=64)
HOP = SPEECH.front_end.hop
FUSIONS = {
    "gated": GatedCrossAttention(every=2, gate=0.5),
    "gated_resampled": GatedCrossAttention(
        every=3, gate=0.5, projectors={"image": Resampler(vectors=3, width=16, heads=2)}
    ),
    "soft": SoftTokens(),
    "soft_mlp": SoftTokens(projectors={"speech": MLP(stack=2), "image": Resampler(vectors=2, width=16, heads=2)}),
    "gated_adapted": GatedCrossAttention(every=2, gate=0.5),
    "soft_adapted": SoftTokens(),
}
# Two more differ in their projectors alone, and two have adapters for tokens after media.
NAMES = [name if "_" not in name else pytest.param(name, marks=pytest.mark.slow) for name in FUSIONS]
# Conversations as lists of turns: numbers of tokens, of the user (a) and of the assistant (-a), and media between them.
TALKS = (
    [3, "image", 2, -4, 2, "speech", 1, -3],
    [2, "speech", "image", 3, -5],
    [4, -3],
    ["image", 1, "image", 2, -2, "speech", 3, -4],
)


def model(fusion, decoder=DECODER):
    media = ("speech", "image") if fusion else ()
    task = CausalLM(media=media, fusion=fusion, decoder=decoder, ends=(7,), length=6)
    return Multimodal(encoders={"text": TokenIds(), "speech": SPEECH, "image": IMAGE}, tasks={"chat": task})


def pack(rows, talks=TALKS, only=None, seed=0):
    """Packs conversations, by their numbers, into rows; every conversation has its own content, wherever it stands."""
    rooms = {"text": 64, "speech": 64, "image": 32}
    shapes = {"text": ((3,), np.int32, ()), "speech": ((HOP,), np.float32, (2,)), "image": ((48,), np.uint8, (2,))}
    batch = {
        name: Stream(
            np.zeros((len(rows), rooms[name], *shape), kind),
            np.zeros((len(rows), rooms[name]), np.int32),
            np.zeros((len(rows), rooms[name], *place), np.int32),
        )
        for name, (shape, kind, place) in shapes.items()
    }
    examples = Stream(*(np.zeros((len(rows), 4), np.int32) for _ in range(3)))
    for row, numbers in enumerate(rows):
        used = dict.fromkeys(rooms, 0)
        for slot, number in enumerate(numbers):
            examples.features[row, slot], examples.segments[row, slot] = number, slot + 1
            for name, (features, positions) in content(number, talks[number], seed).items():
                where = row, slice(used[name], used[name] + len(features))
                batch[name].features[where], batch[name].positions[where] = features, positions
                batch[name].segments[where] = slot + 1
                used[name] += -(-len(features) // 8) * 8 if name == "speech" else len(features)
    batch = {name: batch[name] for name in batch if only is None or name in only}
    return {**batch, "examples": examples}


@cache
def _content(number, talk, seed):
    random, tokens, media, replies = np.random.default_rng([seed, number]), [], [], 0
    for part in talk:
        if isinstance(part, str):
            media.append(part)
            continue
        replies += part < 0
        tokens += [[int(random.integers(8, 50)), replies if part < 0 else 0, len(media)] for _ in range(abs(part))]
    found = {"text": (np.array(tokens), np.arange(len(tokens)))}
    pieces = {"speech": [], "image": []}
    for place, name in enumerate(media):
        if name == "image":
            grid = np.stack(np.meshgrid([0, 1], [0, 1], indexing="ij"), -1).reshape(-1, 2)
            pieces[name].append((random.integers(0, 255, (4, 48)), grid + [0, place * PICTURE]))
        else:  # recordings begin at multiples of 8 hops
            hops = np.arange(8 + 8 * (number % 2))
            pieces[name].append(
                (random.standard_normal((len(hops), HOP)), np.stack([hops + place * RECORDING, 0 * hops + HOP], 1))
            )
    return found | {
        name: tuple(map(np.concatenate, zip(*parts, strict=True))) for name, parts in pieces.items() if parts
    }


def content(number, talk, seed):
    return _content(number, tuple(talk), seed)


@cache
def params_of(name):
    params = jax.jit(lambda: model(FUSIONS.get(name)).init(jax.random.key(0), pack([[0, 1], [3]]))["params"])()
    if name is None or "adapted" not in name:
        return unboxed(params)
    whole = unboxed(adapted(params, {"tasks.chat.decoder.layers": LoRA(rank=4, dora=True, after_media=True)}, 0))
    return jax.tree.map(lambda x: x.replace(b=x.b + 0.1) if is_adapted(x) else x, whole, is_leaf=is_adapted)


@partial(jax.jit, static_argnums=0)
def run(name, params, batch):
    """Logits [B, T, V] of the next token, and the measures."""
    made = model(FUSIONS.get(name))
    stream = made.apply({"params": params}, batch)["chat"].prediction
    return stream.features.features @ stream.features.kernel, measure(made, params, batch)


def logits_of(name, batch, params=None):
    return jax.device_get(run(name, params_of(name) if params is None else params, batch)[0])


def of_example(logits, batch, row, slot):
    return logits[row][batch["text"].segments[row] == slot]


@pytest.mark.parametrize("name", NAMES)
def test_a_conversation_is_the_same_packed_and_alone(name):
    packed, turned, alone = pack([[0, 1, 2], [3]]), pack([[3, 2], [1, 0]]), pack([[0], [1], [2], [3]])
    found = [logits_of(name, batch) for batch in (packed, turned, alone)]
    places = {
        0: ((0, 1), (1, 2), (0, 1)),
        1: ((0, 2), (1, 1), (1, 1)),
        2: ((0, 3), (0, 2), (2, 1)),
        3: ((1, 1), (0, 1), (3, 1)),
    }
    for of_each in places.values():
        first, *others = (
            of_example(x, batch, *place)
            for x, batch, place in zip(found, (packed, turned, alone), of_each, strict=True)
        )
        for other in others:
            np.testing.assert_allclose(first, other, atol=2e-5)


@pytest.mark.parametrize("stream, number", [("speech", 2), ("image", 1)])
@pytest.mark.parametrize("name", NAMES)
def test_media_reach_the_text_after_them_and_no_other(name, stream, number):
    """A recording or picture of conversation 3 changes only the tokens after it, and no other conversation."""
    batch = pack([[1, 3, 2]])
    axis, apart = (0, RECORDING) if stream == "speech" else (1, PICTURE)
    chosen = (batch[stream].segments == 2) & (batch[stream].positions[..., axis] // apart == number)
    changed = batch[stream]._replace(features=np.where(chosen[..., None], 1, batch[stream].features))
    difference = np.abs(logits_of(name, batch) - logits_of(name, {**batch, stream: changed})).max(-1)
    text = batch["text"]
    assert ((difference > 0) == ((text.segments == 2) & (text.features[..., 2] > number))).all()


def test_with_gates_at_zero_the_language_model_is_unchanged_to_the_bit():
    params = params_of("gated")
    zero = jax.tree_util.tree_map_with_path(
        lambda path, x: x * 0 if "gate" in jax.tree_util.keystr(path[-1:]) else x, params
    )
    decoder = {"tasks_chat": {"decoder": params["tasks_chat"]["decoder"]}}
    for batch in (pack([[0, 1, 2], [3]]), pack([[2], [0]], only=("text",))):
        plain = logits_of(None, {name: batch[name] for name in ("text", "examples")}, decoder)
        assert np.array_equal(logits_of("gated", batch, zero), plain)
        assert ("image" not in batch) == np.array_equal(logits_of("gated", batch), plain)


@pytest.mark.parametrize("name", ["soft_adapted", pytest.param("gated_adapted", marks=pytest.mark.slow)])
def test_adapters_for_tokens_after_media_leave_texts_alone_to_the_bit(name):
    with_adapters, params = params_of(name), params_of(name.removesuffix("_adapted"))
    alone = pack([[2], [2]], only=("text",))
    assert np.array_equal(logits_of(name, alone), logits_of(name, alone, params))
    batch = pack([[0, 2], [3]])
    difference = np.abs(logits_of(name, batch) - logits_of(name, batch, params)).max(-1)
    assert ((difference > 0) == (batch["text"].features[..., 2] > 0)).all()
    jax.tree.map(np.testing.assert_array_equal, without_media(with_adapters), params)
    merged = jax.jit(merged_kernels)(with_adapters)
    assert adapted_kernels(merged).keys() == adapted_kernels(with_adapters).keys(), "they cannot be a part of kernels"


def test_adapters_for_tokens_after_media_are_for_a_decoder_of_media():
    batch = pack([[0, 1], [3]])
    params = jax.jit(lambda: model(FUSIONS["soft"]).init(jax.random.key(0), batch)["params"])()
    params = unboxed(adapted(params, {"encoders.image": LoRA(after_media=True)}, 0))
    with pytest.raises(UserError, match=r"after_media is for the layers of the decoder of a CausalLM"):
        logits_of("soft", batch, params)


@pytest.mark.parametrize("name", NAMES)
def test_an_absent_modality_is_the_same_as_a_removed_stream(name):
    batch = pack([[2, 2]])
    sums = {
        only: run(name, params_of(name), pack([[2, 2]], only=only))[1] for only in (None, ("text",), ("text", "image"))
    }
    for key, (total, weight) in sums[None].items():
        for other in sums.values():
            np.testing.assert_allclose(other[key][0], total, rtol=1e-6)
            assert other[key][1] == weight
    assert len(batch) == 4


@pytest.mark.parametrize("name", [None, *NAMES])
def test_replies_are_written_as_without_a_cache(name):
    """Greedy decoding with the cache of packed conversations gives the tokens that the whole model predicts."""
    params, made = params_of(name), model(FUSIONS.get(name))
    batch = pack([[0, 2, 1], [3]])
    predicted = jax.jit(lambda p, b: made.apply({"params": p}, b, {}, method="predict")[1])(params, batch)["chat"]
    for row, slot, number in ((0, 1, 0), (0, 2, 2), (0, 3, 1), (1, 1, 3)):
        ids = predicted.features.ids[row, :, 0][predicted.segments[row] == slot]
        ids = ids[ids >= 0].tolist()
        tokens = content(number, TALKS[number], 0)["text"][0]
        begins = int(np.argmax(tokens[:, 1] == tokens[:, 1].max()))
        alone, written = pack([[number]]), []
        text = alone["text"]
        text.segments[0] = np.arange(64) < begins
        text.positions[0], text.features[0, begins:] = np.arange(64), [0, 0, tokens[begins - 1, 2]]
        while len(written) < 6:
            best = int(logits_of(name, alone, params)[0, begins + len(written) - 1].argmax())
            if best == 7:
                break
            text.features[0, begins + len(written), 0], text.segments[0, begins + len(written)] = best, 1
            written.append(best)
        assert ids == written
