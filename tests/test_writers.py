"""Heads that write: labels get their end, greedy decoding equals plain loops, and a run learns to spell."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny

from mmjax import check, cli
from mmjax import config as c
from mmjax.data.example import Example
from mmjax.data.packing import Packer
from mmjax.data.text import Tokenizer
from mmjax.errors import UserError
from mmjax.evaluate.decoding import SYMBOLS, best_path, by_example, greedy_attention, greedy_transducer
from mmjax.evaluate.measures import Measures
from mmjax.models import AttentionDecoder, TextDecoder, TransducerDecoder
from mmjax.models.writers import begun_and_ended
from mmjax.stream import Stream
from mmjax.train.build import build_layout, build_model
from mmjax.train.step import score, unboxed
from mmjax.train.validate import check_config

DECODER = dict(layers=1, width=16, heads=2, mlp=32)


def rows_of(*rows, length):
    """Streams of ids from lists of (segment, ids), one after the other with a gap between them."""
    ids, segments, positions = np.full((3, len(rows), length), 7)
    segments[:] = 0
    for row, texts in enumerate(rows):
        at = 0
        for segment, text in texts:
            place = row, slice(at, at + len(text))
            ids[place], segments[place], positions[place] = text, segment, range(len(text))
            at += len(text) + (segment == 2)
    return Stream(*(jnp.asarray(x, jnp.int32) for x in (ids, segments, positions)))


def test_every_text_is_begun_and_ended():
    """An empty text is its end alone, [0]; behind a prefix it is the prefix and that."""
    texts = [
        [(1, [5, 6]), (2, [7]), (4, [8, 9, 8])],
        [(3, [2])],
        [],
        [(1, [3, 3, 3]), (2, [4, 4, 4, 4]), (3, [5])],
        [(1, [0]), (2, [7, 8]), (3, [0]), (4, [6, 0])],
    ]
    read, written = jax.jit(begun_and_ended, static_argnums=1)(rows_of(*texts, length=9), 4)
    assert read.segments.shape == (5, 13)
    np.testing.assert_array_equal(read.segments, written.segments)
    np.testing.assert_array_equal(read.positions, written.positions)
    pieces = lambda ids: [i for i in ids if i]  # noqa: E731
    for stream, expected in ((read, lambda ids: [0, *pieces(ids)]), (written, lambda ids: [*pieces(ids), 0])):
        found = {place: tokens.tolist() for place, tokens in by_example(*map(np.asarray, stream[:2]))}
        assert found == {(row, n): expected(ids) for row, some in enumerate(texts) for n, ids in some}
    for _, positions in by_example(np.asarray(read.positions), np.asarray(read.segments)):
        assert positions.tolist() == list(range(len(positions)))


def test_an_empty_transcript_teaches_every_writer_to_end_and_a_missing_one_nothing():
    """Alone and packed with others; with the tokens and ends that it counts as."""
    config = joint()
    tokenizer = Tokenizer.train(["red circle", "blue square"], 48)
    layout = build_layout(config, tokenizer).without("image", "text")
    model = build_model(
        dataclasses.replace(
            config.model,
            fusion=None,
            heads={name: head for name, head in config.model.heads.items() if name != "answer"},
        )
    )
    objectives = {name: one for name, one in config.objectives.items() if name != "answer"}
    noise = np.random.default_rng(0).normal(size=4000).astype(np.float32)
    examples = {said: Example(speech=lambda: noise, transcript=said) for said in (None, "", "red")}

    def batch(*chosen):
        packer = Packer(layout, 1)
        for said in chosen:
            packer.add(0, examples[said], frozenset({"speech"}), name=repr(said))
        return packer.batch

    packed = batch(*examples)
    params = unboxed(jax.jit(model.init)(jax.random.key(0), packed)["params"])

    @jax.jit
    def losses(batch):
        sums = score(objectives, model.apply({"params": params}, batch), batch)
        return {name: sums[f"{name}/loss"] for name in objectives}

    alone = {said: jax.tree.map(float, losses(batch(said))) for said in examples}
    assert alone[None] == dict.fromkeys(objectives, (0.0, 0.0))
    for name, (loss, weight) in losses(packed).items():
        assert alone[""][name][0] > 0.1 and alone[""][name][1] == 1, name
        assert weight == sum(one[name][1] for one in alone.values())
        np.testing.assert_allclose(loss, sum(one[name][0] for one in alone.values()), rtol=1e-5)


def test_what_is_written_for_an_empty_transcript_counts_as_insertions():
    """A missing transcript is not measured."""
    tokenizer = Tokenizer.train(["abc"], 45)
    texts = [(1, ""), (2, "abc"), (3, "b")]
    ids = lambda *texts: rows_of([(n, tokenizer.of_stream("target", t)) for n, t in texts], length=16)  # noqa: E731
    slots = Stream(*(np.arange(1, 5, dtype=np.int32)[None],) * 3)
    found = Measures(None, tokenizer, {})
    found.add(slots, {}, {"said": (ids((1, "ab"), (2, "abc"), (3, "b"), (4, "abc")), ids(*texts))}, {}, {})
    assert found.metrics() == {"said/cer": 2 / 4, "said/wer": 1 / 2}


def encoded(lengths, width, seed=0):
    """One row of encoded examples, and their slots."""
    segments = np.repeat(np.arange(1, len(lengths) + 1), lengths)[None].astype(np.int32)
    features = np.random.default_rng(seed).normal(size=(1, sum(lengths), width)).astype(np.float32)
    positions = np.concatenate([np.arange(n) for n in lengths])[None].astype(np.int32)
    slots = np.arange(1, len(lengths) + 1, dtype=np.int32)[None]
    return {"speech": Stream(*map(jnp.asarray, (features, segments, positions)))}, Stream(slots, slots, slots * 0)


def random_parameters(head, streams, examples, seed=1):
    text = Stream(*(jnp.ones((1, 4), jnp.int32),) * 3)
    shapes = unboxed(jax.eval_shape(head.init, jax.random.key(0), streams, text, examples)["params"])
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(0.5 * draw.normal(size=x.shape), jnp.float32), shapes)


def alone(streams, number):
    """What belongs to one example, as a batch of its own."""
    stream = streams["speech"]
    own = np.asarray(stream.segments[0]) == number
    slot = jnp.ones((1, 1), jnp.int32)
    return {"speech": Stream(*(x[:, own] for x in stream))._replace(segments=slot.repeat(own.sum(), 1))}, Stream(
        slot, slot, slot * 0
    )


def test_greedy_attention_equals_running_the_whole_decoder_again_for_every_token():
    head = AttentionDecoder(reads=("speech",), decoder=TextDecoder(vocabulary=6, tied=False, **DECODER))
    streams, examples = encoded([4, 2, 7, 1], 8)
    parameters = random_parameters(head, streams, examples, seed=0)
    apply = lambda *a, **k: head.apply({"params": parameters}, *a, **k)  # noqa: E731
    longest = 6
    ours = jax.jit(lambda: greedy_attention(head, apply, streams, examples, longest))()
    found = {n: ids.tolist() for (_, n), ids in by_example(np.asarray(ours.features), np.asarray(ours.segments))}

    @jax.jit
    def next_ids(streams, examples, text):
        return apply(streams, text, examples)[0].features[0].argmax(-1)

    for number in range(1, 5):
        own, slot = alone(streams, number)
        ids = []
        while len(ids) < longest:
            room = np.zeros((1, longest), np.int32)
            room[0, : len(ids)] = ids
            stands = (np.arange(longest) < len(ids))[None].astype(np.int32)
            text = Stream(jnp.asarray(room), jnp.asarray(stands), jnp.arange(longest)[None] * stands)
            if ids:
                best = int(next_ids(own, slot, text)[len(ids)])
            else:  # a text of no tokens is not in the stream: ask for the first label of any text
                best = int(next_ids(own, slot, text._replace(segments=text.segments.at[0, 0].set(1)))[0])
            if best == 0:
                break
            ids.append(best)
        assert [i for i in found[number] if i] == ids
    assert len({tuple(ids) for ids in found.values()}) > 1 and any(0 in ids for ids in found.values())


def test_greedy_transducer_equals_a_plain_loop():
    head = TransducerDecoder(reads="speech", outputs=5, width=8, context=2)
    streams, examples = encoded([5, 3, 8], 6)
    parameters = random_parameters(head, streams, examples)
    apply = lambda *a, **k: head.apply({"params": parameters}, *a, **k)  # noqa: E731
    ours = jax.jit(lambda: greedy_transducer(head, apply, streams, examples, 99))()
    found = {
        n: ids[ids > 0].tolist() for (_, n), ids in by_example(np.asarray(ours.features), np.asarray(ours.segments))
    }
    p = jax.tree.map(np.asarray, parameters)
    for number in (1, 2, 3):
        frames = (
            np.asarray(alone(streams, number)[0]["speech"].features[0]) @ p["frames"]["kernel"] + p["frames"]["bias"]
        )
        ids = []
        for frame in frames:
            for _ in range(SYMBOLS):
                labels = [0, *ids][::-1][:2]
                embedded = [p["embedding"]["embedding"][i] for i in labels] + [np.zeros(8)] * (2 - len(labels))
                state = np.concatenate(embedded) @ p["states"]["kernel"] + p["states"]["bias"]
                best = int(np.argmax(np.tanh(frame + state) @ p["kernel"] + p["bias"]))
                if best == 0:
                    break
                ids.append(best)
        assert found[number] == ids
    assert len({len(ids) for ids in found.values()}) > 1


def test_the_joint_of_training_is_that_of_decoding():
    """States of the packed labels, shifted, equal the state of each label's own recent labels."""
    head = TransducerDecoder(reads="speech", outputs=9, width=8, context=3)
    streams, examples = encoded([5, 3], 6)
    text = rows_of([(1, [3, 4, 5, 6]), (2, [7])], length=6)
    parameters = random_parameters(head, streams, examples)
    joint, labels = head.apply({"params": parameters}, streams, text, examples)
    frames, states = joint.features.frames.features[0], joint.features.states.features[0]
    logits = np.tanh(frames[2] + states) @ joint.features.kernel + joint.features.bias
    for place, recent in ((0, [0, -1, -1]), (1, [3, 0, -1]), (3, [5, 4, 3]), (5, [0, -1, -1]), (6, [7, 0, -1])):
        expected = head.apply({"params": parameters}, frames[2:3], jnp.array([recent]), method="logits")
        np.testing.assert_allclose(logits[place], expected[0], rtol=1e-4, atol=1e-5)
    assert labels.features[0, :7].tolist() == [3, 4, 5, 6, 0, 7, 0]


def test_best_path_merges_repeats_within_an_example_only():
    ids = jnp.array([[3, 3, 0, 3, 4, 4, 4, 4, 0, 5]])
    segments = jnp.array([[1, 1, 1, 1, 1, 1, 2, 2, 2, 0]])
    path = best_path(Stream(jax.nn.one_hot(ids, 6), segments, segments * 0))
    assert path.features[0].tolist() == [3, 0, 0, 3, 4, 0, 4, 0, 0, 0]


def joint(**changes):
    """tiny() with CTC, an attention decoder and a transducer for the same transcript."""
    config = tiny(**changes)
    heads = {
        "attention": c.AttentionDecoder(
            reads=("speech", "image"), decoder=c.TextDecoder(vocabulary=128, **DECODER), writes="transcript"
        ),
        "transducer": c.TransducerDecoder(reads="speech", outputs=128, width=16),
    }
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, heads={**config.model.heads, **heads}),
        objectives={**config.objectives, "attention": c.Sequence(next_token=False), "transducer": c.Transducer()},
    )


@pytest.mark.slow
def test_the_invariants_hold():
    with jax.default_matmul_precision("highest"):
        subject = check.Subject(joint())
        # To round the parameters otherwise moves one of these rows by 1e-5 already, packed as it is (docs/log.md).
        assert check.packing(subject) <= 3 * check.TOLERANCES["packing"]
        assert check.emptiness(subject) <= check.TOLERANCES["emptiness"]
        assert check.absence(subject) <= check.TOLERANCES["absence"]
        _, measured = subject.run(subject.batch)
        for name in ("heads_attention", "heads_transducer"):
            assert all(
                np.abs(leaf).max() > 0
                for leaf in jax.tree.leaves(
                    measured["gradients"][name]["decoder"]
                    if "decoder" in measured["gradients"][name]
                    else measured["gradients"][name]
                )
            )


@pytest.mark.parametrize(
    "heads, objectives, message",
    [
        ({}, {"attention": c.Sequence()}, "objectives.attention.next_token is True"),
        ({}, {"attention": c.CTC()}, "objectives.attention is CTC, which cannot read"),
        ({}, {"transducer": c.CTC()}, "objectives.transducer is CTC, which cannot read"),
        ({}, {"answer": c.Transducer()}, "objectives.answer is Transducer, which cannot read"),
        ({"attention": c.AttentionDecoder(reads=("smell",))}, {}, "model.heads.attention.reads=('smell',)"),
        ({"attention": c.AttentionDecoder(reads=())}, {}, "model.heads.attention.reads=()"),
        (
            {"attention": c.AttentionDecoder(reads=("speech",), writes="target")},
            {},
            "writes='target', but data.rows has no room for it",
        ),
        (
            {
                "attention": c.AttentionDecoder(
                    reads=("speech",), decoder=c.TextDecoder(positions="learned", length=20, **DECODER)
                )
            },
            {},
            "decoder.length=20, but a text with its end token may have 21 tokens",
        ),
        (
            {"attention": c.AttentionDecoder(reads=("speech",), decoder=c.TextDecoder(cross_attention=False))},
            {},
            "cross_attention is False",
        ),
        (
            {"attention": c.AttentionDecoder(reads=("speech",), decoder=c.TextDecoder(width=10, heads=4))},
            {},
            "model.heads.attention.decoder.width=10 does not divide among 4 heads",
        ),
    ],
)
def test_writers_that_cannot_work_are_refused(heads, objectives, message):
    config = joint()
    model = dataclasses.replace(config.model, heads={**config.model.heads, **heads})
    with pytest.raises(UserError, match=re.escape(message)):
        check_config(dataclasses.replace(config, model=model, objectives={**config.objectives, **objectives}))


SPELLING = '''
"""Letters as vectors, to be written: a stand-in for speech that is learned in seconds."""
import numpy as np
from mmjax import config as c
from mmjax.data.example import Example
from mmjax.data.text import Tokenizer

LETTERS = "abcd"

class Spelling:
    answers = ()
    def __init__(self, directory, split):
        draw = np.random.default_rng(("train", "test").index(split))
        self.words = ["".join(draw.choice(list(LETTERS), draw.integers(1, 6))) for _ in range(400 if split == "train" else 60)]
        self.tokenizer = Tokenizer.train(LETTERS, 48)
        self.sizes = {"signs": np.array([3 * len(w) for w in self.words]),
                      "target": np.array([len(self.tokenizer.encode(w)) for w in self.words])}
    def __len__(self):
        return len(self.words)
    def __getitem__(self, index):
        letters = np.repeat([LETTERS.index(letter) for letter in self.words[index]], 3)
        noise = 0.03 * np.random.default_rng(index).standard_normal((len(letters), 5))
        signs = np.eye(5)[letters]
        signs[::3, 4] = 1.0  # where a letter begins
        return Example(vectors={"signs": signs + noise}, target=self.words[index])

config = c.Experiment(
    name="spelling",
    steps=150,
    data=c.Data(
        source=c.OwnSource(file=__file__, name="Spelling"), batch_rows=8,
        rows={"signs": 60, "target": 48, "examples": 10}, subsets={"signs": 1.0},
    ),
    model=c.Multimodal(
        encoders={"signs": c.Vectors(inputs=5, layers=1, width=32, heads=2, mlp=64)},
        fusion=c.Add(width=8),
        heads={
            "target": c.Head(reads="signs", outputs=48),
            "attention": c.AttentionDecoder(
                reads=("signs",), writes="target",
                decoder=c.TextDecoder(vocabulary=48, layers=1, width=32, heads=2, mlp=64),
            ),
            "transducer": c.TransducerDecoder(reads="signs", outputs=48, writes="target", width=32),
        },
    ),
    objectives={"target": c.CTC(), "attention": c.Sequence(next_token=False), "transducer": c.Transducer()},
    optimizer=c.Optimizer(rule=c.Muon(), schedule=c.WarmupCosine(peak=2e-2, warmup=10, steps=150)),
    evaluation=c.Evaluation(subsets=("signs",)),
    log=c.Log(every_steps=20, tensorboard=False),
)
'''


@pytest.mark.slow
def test_a_run_learns_to_write_in_all_three_ways(tmp_path, capsys):
    path, run = tmp_path / "spelling.py", tmp_path / "run"
    path.write_text(SPELLING)
    assert cli.main(["train", str(path), "--run-dir", str(run)]) == 0
    capsys.readouterr()
    assert cli.main(["eval", str(run), "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["subsets"]["signs"]
    assert metrics["examples"] == 60
    assert metrics["target/cer"] < 0.03 and metrics["transducer/cer"] < 0.1 and metrics["attention/cer"] < 0.25
    assert cli.main(["predict", str(run), "--example", "3", "--json"]) == 0
    predicted = json.loads(capsys.readouterr().out)
    assert predicted["target"] == predicted["example"]["text"] == predicted["transducer"]
    assert cli.main(["predict", str(run), "--example", "3"]) == 0
    assert f"transducer: {predicted['transducer']}" in capsys.readouterr().out


def test_what_no_piece_covers_is_never_written_right():
    """Scored as the text of the example, in whichever of its texts the head writes."""
    tokenizer = Tokenizer.train(["red circle", "blue square"], 52)
    source = [Example(text="жёлтый", target="red ж"), Example(target="red"), Example(text="жёлтый круг")]
    labels = [tokenizer.of_stream("target", text) for text in ("red ж", "red", "жёлтый круг")]
    ours = rows_of(list(enumerate(labels, 1)), length=40)  # all labels, and so many an unknown
    slots = Stream(np.array([[0, 1, 2]], np.int32), *(np.arange(1, 4, dtype=np.int32)[None],) * 2)
    found = Measures(source, tokenizer, {}, {"said": "target"})
    found.add(slots, {}, {"said": (rows_of(list(enumerate(labels[:2], 1)), length=40),) * 2}, {}, {})
    assert found.metrics()["said/wer"] == 1 / 3
    found = Measures(source, tokenizer, {})
    found.add(slots, {}, {"transcript": (ours, rows_of([(3, labels[2])], length=40))}, {}, {})
    assert found.metrics()["transcript/cer"] > 0.7 and found.metrics()["transcript/wer"] == 1.0
