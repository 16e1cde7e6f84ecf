"""Tasks that write a text: labels get their end, greedy decoding equals plain loops, and a run learns to spell."""

import dataclasses
import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny

from mmjax import check, cli
from mmjax.data.example import Example
from mmjax.data.labels import Alternatives, alternatives
from mmjax.data.packing import Packer
from mmjax.data.text import Tokenizer
from mmjax.decode import BestPath, GreedyTransducer, Written, by_example, hypotheses, one_text
from mmjax.errors import UserError
from mmjax.evaluate.comparison import read_saved
from mmjax.evaluate.measures import Measures
from mmjax.files import json_lines
from mmjax.models import Learned, LSTMPrediction, StatelessPrediction, TextDecoder
from mmjax.models.task import losses_of
from mmjax.models.texts import inputs_and_targets
from mmjax.results import begun
from mmjax.stream import EMPTY, Stream
from mmjax.tasks import CTC, Encoded, Facts, Transducer, Write
from mmjax.train.build import build_layout, build_model
from mmjax.train.step import unboxed
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


@pytest.mark.parametrize("start, end", [(0, 0), (10, 11)])
def test_every_text_begins_and_ends(start, end):
    """An empty text is `EMPTY` alone; behind a prefix it is the prefix and that."""
    texts = [
        [(1, [5, 6]), (2, [7]), (4, [8, 9, 8])],
        [(3, [2])],
        [],
        [(1, [3, 3, 3]), (2, [4, 4, 4, 4]), (3, [5])],
        [(1, [EMPTY]), (2, [7, 8]), (3, [EMPTY]), (4, [6, EMPTY])],
    ]
    inputs, targets = jax.jit(inputs_and_targets, static_argnums=1)(rows_of(*texts, length=9), 4, start, end)
    assert inputs.segments.shape == (5, 13)
    np.testing.assert_array_equal(inputs.segments, targets.segments)
    np.testing.assert_array_equal(inputs.positions, targets.positions)
    pieces = {(row, n): [i for i in ids if i != EMPTY] for row, some in enumerate(texts) for n, ids in some}
    assert {at: ids.tolist() for at, ids in by_example(inputs)} == {at: [start, *ids] for at, ids in pieces.items()}
    assert {at: ids.tolist() for at, ids in by_example(targets)} == {at: [*ids, end] for at, ids in pieces.items()}
    for _, positions in by_example(inputs._replace(features=inputs.positions)):
        assert positions.tolist() == list(range(len(positions)))


def test_an_empty_transcript_teaches_every_writer_to_end_and_a_missing_one_nothing():
    """Alone and packed with others; with the tokens and ends that it counts as."""
    config = joint()
    tokenizer = Tokenizer.train(["red circle", "blue square"], 48)
    layout = build_layout(config, tokenizer).without("image", "text")
    tasks = {name: task for name, task in config.model.tasks.items() if name != "answer"}
    model = build_model(config.model.clone(fusion=None, tasks=tasks))
    noise = np.random.default_rng(0).normal(size=4000).astype(np.float32)
    examples = {
        said: Example({"speech": lambda: noise}, {} if said is None else {"transcript": said})
        for said in (None, "", "red")
    }

    def batch(*chosen):
        packer = Packer(layout, 1)
        for said in chosen:
            packer.add(0, examples[said], frozenset({"speech"}), name=repr(said))
        return packer.batch

    packed = batch(*examples)
    params = unboxed(jax.jit(model.init)(jax.random.key(0), packed)["params"])

    @jax.jit
    def losses(batch):
        sums = losses_of(model.tasks, model.apply({"params": params}, batch))
        return {name: sums[f"{name}/loss"] for name in tasks}

    alone = {said: jax.tree.map(float, losses(batch(said))) for said in examples}
    assert alone[None] == dict.fromkeys(tasks, (0.0, 0.0))
    for name, (loss, weight) in losses(packed).items():
        assert alone[""][name][0] > 0.1 and alone[""][name][1] == 1, name
        assert weight == sum(one[name][1] for one in alone.values())
        np.testing.assert_allclose(loss, sum(one[name][0] for one in alone.values()), rtol=1e-5)


def written(text):
    """A text as a decoder writes it."""
    return jax.device_get(one_text(text.features, jnp.zeros(text.segments.shape), text.segments, None))


def test_what_is_written_for_an_empty_transcript_counts_as_insertions():
    """A missing transcript is not measured."""
    tokenizer = Tokenizer.train(["abc"], 45)
    texts = [(1, ""), (2, "abc"), (3, "b")]
    ids = lambda *texts: rows_of([(n, tokenizer.to_write(t)) for n, t in texts], length=16)  # noqa: E731
    slots = Stream(*(np.arange(1, 5, dtype=np.int32)[None],) * 3)
    found = Measures({"said": CTC(label="target")}, Facts(tokenizer), [])
    said = written(ids((1, "ab"), (2, "abc"), (3, "b"), (4, "abc")))
    found.add(slots, {}, {"said": said}, {"said": ids(*texts)})
    calibration = pytest.approx(1 / 3)  # of three words, all with a confidence of 1, two are right
    assert found.metrics() == {
        "said/cer": 2 / 4,
        "said/wer": 1 / 2,
        "said/ece": calibration,
        "said/examples": 3,
        "examples": 4,
    }


def encoded(lengths, width, seed=0):
    """One row of encoded examples, and their slots."""
    segments = np.repeat(np.arange(1, len(lengths) + 1), lengths)[None].astype(np.int32)
    features = np.random.default_rng(seed).normal(size=(1, sum(lengths), width)).astype(np.float32)
    positions = np.concatenate([np.arange(n) for n in lengths])[None].astype(np.int32)
    slots = np.arange(1, len(lengths) + 1, dtype=np.int32)[None]
    return {"speech": Stream(*map(jnp.asarray, (features, segments, positions)))}, Stream(slots, slots, slots * 0)


def read(streams, text, examples):
    """What a task is called with."""
    return Encoded({"transcript": text, "examples": examples}, streams, {}, None, {})


def random_parameters(task, streams, examples, seed=1):
    text = Stream(*(jnp.ones((1, 4), jnp.int32),) * 3)
    shapes = unboxed(jax.eval_shape(task.init, jax.random.key(0), read(streams, text, examples))["params"])
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


TOLD = dict(start_token=6, end_token=7, given=2, suppress=(0, 2), suppress_first=(7,))


@pytest.mark.parametrize(
    "options", [pytest.param({}, id="plain"), pytest.param(TOLD, id="told", marks=pytest.mark.slow)]
)
def test_writing_equals_running_the_whole_decoder_again_for_every_token(options):
    """Of packed examples, some with other given tokens than others; an end may be forbidden at the start."""
    task = Write(reads=("speech",), decoder=TextDecoder(vocabulary=8, tied=False, **DECODER), **options)
    streams, examples = encoded([4, 2, 7, 1], 8)
    parameters = random_parameters(task, streams, examples, seed=0)
    apply = partial(task.apply, {"params": parameters})
    given = [(3, 4), (4, 3), (3, 3), (5, 4)] if options else [()] * 4
    longest = 6 + task.given
    told = rows_of([(n, [*ids, EMPTY]) for n, ids in enumerate(given, 1)], length=4 * (task.given + 1) + 1)
    decode = jax.jit(lambda: task.decode(apply, read(streams, told, examples), None, {"transcript": longest}))
    found = {n: written.ids[:, 0].tolist() for (_, n), written in by_example(jax.device_get(decode()))}

    @jax.jit
    def logits_of(streams, examples, text):
        return apply(read(streams, text, examples)).prediction.features[0]

    for number in range(1, 5):
        own, slot = alone(streams, number)
        ids = list(given[number - 1])
        while len(ids) < longest:
            room = np.zeros((1, longest), np.int32)
            room[0, : len(ids)] = ids
            stands = (np.arange(longest) < len(ids))[None].astype(np.int32)
            text = Stream(jnp.asarray(room), jnp.asarray(stands), jnp.arange(longest)[None] * stands)
            if not ids:  # a text of no tokens is not in the stream: ask for the first label of any text
                text = text._replace(segments=text.segments.at[0, 0].set(1))
            scores = np.array(logits_of(own, slot, text)[len(ids)])
            scores[list(task.suppress + task.suppress_first * (len(ids) == task.given))] = -np.inf
            best = int(scores.argmax())
            if best == task.end_token:
                break
            ids.append(best)
        assert [i for i in found[number] if i != EMPTY] == ids[task.given :]
    assert len({tuple(ids) for ids in found.values()}) > 1
    assert any(EMPTY in ids for ids in found.values())


def test_greedy_transducer_equals_a_plain_loop():
    task = Transducer(reads="speech", outputs=5, width=8)
    streams, examples = encoded([5, 3, 8], 6)
    parameters = random_parameters(task, streams, examples)
    apply = partial(task.apply, {"params": parameters})
    ours = jax.device_get(
        jax.jit(lambda: GreedyTransducer()(apply, streams["speech"], examples.segments, 16, task.memory))()
    )
    found = {n: written for (_, n), written in by_example(ours)}
    p = jax.tree.map(np.asarray, parameters)
    for number in (1, 2, 3):
        frames = (
            np.asarray(alone(streams, number)[0]["speech"].features[0]) @ p["frames"]["kernel"] + p["frames"]["bias"]
        )
        ids, score, places = [], 0.0, []
        for place, frame in enumerate(frames):
            for _ in range(GreedyTransducer().symbols):
                labels = [0, *ids][::-1][:2]
                embedded = [p["network"]["embed"]["embedding"][i] for i in labels] + [np.zeros(8)] * (2 - len(labels))
                state = np.concatenate(embedded) @ p["network"]["out"]["kernel"] + p["network"]["out"]["bias"]
                logits = np.tanh(frame + state) @ p["kernel"] + p["bias"]
                best = int(np.argmax(logits))
                score += logits[best] - np.log(np.exp(logits).sum())
                if best == 0:
                    break
                ids.append(best)
                places.append(place)
        written = found[number].ids[:, 0] > 0
        assert found[number].ids[written, 0].tolist() == ids
        assert found[number].frames[written, 0].tolist() == places
        assert found[number].scores.sum() == pytest.approx(score, rel=1e-4)
    assert len({(one.ids > 0).sum() for one in found.values()}) > 1


@pytest.mark.parametrize("prediction", [StatelessPrediction(context=3), LSTMPrediction(layers=2)])
def test_the_joint_of_training_is_that_of_decoding(prediction):
    """States of the packed labels equal the state after each label of its own text."""
    task = Transducer(reads="speech", outputs=9, width=8, predictor=prediction, activation="relu")
    streams, examples = encoded([5, 3], 6)
    text = rows_of([(1, [3, 4, 5, 6]), (2, [7])], length=6)
    parameters = random_parameters(task, streams, examples)
    joint, labels = task.apply({"params": parameters}, read(streams, text, examples))
    frames, states = joint.features.frames.features[0], joint.features.states.features[0]
    logits = np.maximum(frames[2] + states, 0) @ joint.features.kernel + joint.features.bias
    for place, labels_ in ((0, [0, 3, 4, 5, 6]), (5, [0, 7])):
        memory = task.memory((1,))
        for more, label in enumerate(labels_):
            step = partial(task.apply, {"params": parameters}, method="logits")
            expected, memory = step(frames[2:3], jnp.array([label]), memory)
            np.testing.assert_allclose(logits[place + more], expected[0], rtol=1e-4, atol=1e-5)
    assert labels.features[0, :7].tolist() == [3, 4, 5, 6, 0, 7, 0]


def test_best_path_merges_repeats_within_an_example_only():
    ids = jnp.array([[3, 3, 0, 3, 4, 4, 4, 4, 0, 5]])
    segments = jnp.array([[1, 1, 1, 1, 1, 1, 2, 2, 2, 0]])
    path = BestPath()(Stream(jax.nn.one_hot(ids, 6), segments, segments * 0))
    assert path.features.ids[0, :, 0].tolist() == [3, 0, 0, 3, 4, 0, 4, 0, 0, 0]


def joint(**others):
    """tiny() with CTC, an attention decoder and a transducer for the same transcript, and other tasks."""
    config = tiny()
    tasks = {
        **config.model.tasks,
        "attention": Write(reads=("speech", "image"), decoder=TextDecoder(vocabulary=128, **DECODER)),
        "transducer": Transducer(reads="speech", outputs=128, width=16),
    }
    return dataclasses.replace(config, model=config.model.clone(tasks=tasks | others))


@pytest.mark.slow
def test_the_invariants_hold():
    with jax.default_matmul_precision("highest"):
        subject = check.Subject(joint())
        # To round the parameters otherwise moves one of these rows by 1e-5 already, packed as it is (docs/log.md).
        assert check.packing(subject) <= 3 * check.TOLERANCES["packing"]
        assert check.emptiness(subject) <= check.TOLERANCES["emptiness"]
        assert check.absence(subject) <= check.TOLERANCES["absence"]
        _, measured = subject.run(subject.batch)
        for name in ("tasks_attention", "tasks_transducer"):
            gradients = measured["gradients"][name]
            assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients.get("decoder", gradients)))


def writing(**changes):
    return Write(reads=("speech",), decoder=TextDecoder(**DECODER | changes))


@pytest.mark.parametrize(
    "task, message",
    [
        (Write(reads=("smell",)), "model.tasks.attention.reads='smell' is neither an encoder nor 'fused'"),
        (Write(reads=()), "model.tasks.attention.reads=() must name one or more encoders"),
        (Write(reads=("fused",)), "model.tasks.attention.reads=('fused',) must name one or more encoders"),
        (
            Write(reads=("speech",), label="target"),
            "model.tasks.attention writes 'target', but data.rows.target is not set; set its number of tokens",
        ),
        (
            writing(positions=Learned(length=20)),
            "model.tasks.attention.decoder.positions.length=20, but a text with its end token may have 21 tokens",
        ),
        (writing(cross_attention=False), "model.tasks.attention.decoder.cross_attention is False"),
        (writing(width=10, heads=4), "model.tasks.attention.decoder.width=10 does not divide among 4 heads"),
    ],
)
def test_writers_that_cannot_work_are_refused(task, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check_config(joint(attention=task))


SPELLING = '''
"""Letters as vectors, to be written: a stand-in for speech that is learned in seconds."""
import numpy as np
from mmjax import config as c
from mmjax.data.example import Example
from mmjax.data.labels import Alternatives, alternatives
from mmjax.data.text import Tokenizer

LETTERS = "abcd"

class Spelling:
    labels = {}
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
        return Example({"signs": signs + noise}, {"target": self.words[index]})

config = c.Experiment(
    name="spelling",
    steps=150,
    data=c.Data(
        source=c.OwnSource(file=__file__, name="Spelling"), batch_rows=8,
        rows={"signs": 60, "target": 48, "examples": 10}, subsets={"signs": 1.0},
    ),
    model=c.Multimodal(
        encoders={"signs": c.Vectors(inputs=5, layers=1, width=32, heads=2, mlp=64)},
        tasks={
            "target": c.CTC(reads="signs", label="target"),
            "attention": c.Write(
                reads=("signs",), label="target",
                decoder=c.TextDecoder(vocabulary=48, layers=1, width=32, heads=2, mlp=64),
            ),
            "transducer": c.Transducer(reads="signs", label="target", width=32),
        },
    ),
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
    """The reference is the text of the example: the transcript or the target, as the task says."""
    tokenizer = Tokenizer.train(["red circle", "blue square"], 52)
    source = [
        Example({"text": "жёлтый"}, {"target": "red ж"}),
        Example({}, {"target": "red"}),
        Example({"text": "жёлтый круг"}),
    ]
    labels = [tokenizer.to_write(text) for text in ("red ж", "red", "жёлтый круг")]
    ours = rows_of(list(enumerate(labels, 1)), length=40)  # all labels, and so many an unknown
    slots = Stream(np.array([[0, 1, 2]], np.int32), *(np.arange(1, 4, dtype=np.int32)[None],) * 2)
    tasks = {"said": CTC(label="target"), "transcript": CTC()}
    found = Measures(tasks, Facts(tokenizer), source)
    said = rows_of(list(enumerate(labels[:2], 1)), length=40)
    found.add(slots, {}, {"said": written(said)}, {"said": said})
    assert found.metrics()["said/wer"] == 1 / 3
    found = Measures(tasks, Facts(tokenizer), source)
    found.add(slots, {}, {"transcript": written(ours)}, {"transcript": rows_of([(3, labels[2])], length=40)})
    assert found.metrics()["transcript/cer"] > 0.7 and found.metrics()["transcript/wer"] == 1.0


class Examples(list):
    labels = {}


def test_an_answer_of_any_person_is_compared(tmp_path):
    """The alternatives of a label count where a metric takes several references, and only there."""
    tokenizer = Tokenizer.train(["red circle", "blue square"], 52)
    source = Examples([Example({}, {"answer": Alternatives(["Red"] * 2 + ["blue"] * 3)})])
    said, label = ([(1, tokenizer.to_write(text))] for text in ("red", "blue"))
    slots = Stream(np.array([[0]], np.int32), *(np.ones((1, 1), np.int32),) * 2)
    found = Measures({"answer": CTC(label="answer", measures=("vqa_accuracy", "wer"))}, Facts(tokenizer), source)
    found.add(slots, {}, {"answer": written(rows_of(said, length=9))}, {"answer": rows_of(label, length=9)})
    assert found.metrics()["answer/vqa_accuracy"] == pytest.approx((3 * 2 / 3 + 2 * 1 / 3) / 5)
    assert found.metrics()["answer/wer"] == 1.0
    # A saved evaluation has all that are right, also if the metrics read only one.
    for measures in (("wer",), ("vqa_accuracy",)):
        found = Measures({"answer": CTC(label="answer", measures=measures)}, Facts(tokenizer), source)
        found.add(slots, {}, {"answer": written(rows_of(said, length=9))}, {"answer": rows_of(label, length=9)})
        (line,) = found.lines()
        assert line["tasks"]["answer"]["reference"] == ["blue"] + ["red"] * 2 + ["blue"] * 2
    saved = tmp_path / "saved.jsonl"
    with json_lines(saved) as write:
        write({"subset": "speech", **line})
    (read,) = read_saved(saved)["speech"]["answer"].references
    assert read == "blue" and sorted(alternatives(read)) == ["blue"] * 3 + ["red"] * 2
    # The learned text stays the one that is compared, also where the tokenizer writes others alike.
    facts, said = (
        Facts(Tokenizer.train(["red blue"], 46, normalisation="nmt_nfkc_cf")),
        ["red", "red", "Blue", "blue", "BLUE"],
    )
    example = Example({}, {"answer": Alternatives(said)})
    assert CTC(label="answer").references("red", example, facts) == ["red", "red", "blue", "blue", "blue"]


def test_lines_for_people_have_no_escapes_and_are_read_back(tmp_path):
    values = [{"name": "caf\udce9.wav", "text": "Tromsø 漢字 🎉"}, {"text": 'one\u2028line\x85\u2029, "quoted"\n'}]
    with json_lines(tmp_path / "lines.jsonl") as write:
        for value in values:
            write(value)
    assert "Tromsø 漢字 🎉" in (lines := (tmp_path / "lines.jsonl").read_text(encoding="utf-8"))
    assert [json.loads(line) for line in lines.splitlines()] == values == begun(tmp_path / "lines.jsonl")


def test_a_list_of_texts_has_each_once():
    """Of several tokenizations of a text, the best counts."""
    pieces = {1: "a", 2: " b", 3: " ", 4: "b", 5: "c", 6: "\n"}
    ids = np.array([[1, 2, -1], [1, 3, 4], [5, -1, -1], [1, 6, 4]]).T
    scores = np.array([[-1.0, -1, 0], [-1, -1, -1], [-4, 0, 0], [-5, -1, 0]]).T
    found = hypotheses(
        Written(np.where(ids < 0, EMPTY, ids), scores, scores, ids), lambda some: "".join(map(pieces.get, some))
    )
    assert [(one.text, one.score) for one in found.every] == [("a b", -2.0), ("c", -4.0), ("a\nb", -6.0)]
