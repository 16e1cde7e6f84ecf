"""spoken_easy_vqa: prepared once, wholly or not at all; loaded alike on any number of hosts."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import numpy as np
import pytest
import soundfile
from conftest import tiny
from corpora import corpus

from mmjax import cli
from mmjax import config as c
from mmjax.data.audio import read_audio
from mmjax.data.layout import Layout
from mmjax.data.loader import Batches, prefetch, share_of_padding, too_many
from mmjax.data.manifest import ManifestRecords
from mmjax.data.sampler import Sampler
from mmjax.data.spoken_easy_vqa import SpokenEasyVQAExamples, prepare
from mmjax.data.spoken_easy_vqa_builder import VOICES
from mmjax.errors import UserError
from mmjax.stream import Share
from mmjax.train.build import build_layout, build_sampler, build_source
from mmjax.train.report import note_skipped


def test_test_voices_are_never_heard_in_training():
    train, test = ({voice.variant for voice in VOICES[split]} for split in ("train", "test"))
    assert not train & test and len(set(VOICES["train"])) == 48 and len(set(VOICES["test"])) == 8


def test_an_example_holds_what_the_index_says(source):
    for index in (0, 17, len(source) - 1):
        example = source[index]
        assert len(example.inputs["speech"]()) == source.sizes["speech"][index]
        assert len(source.tokenizer.encode(example.inputs.get("text"))) == source.sizes["text"][index]
        assert (
            example.labels.get("transcript") == example.inputs.get("text")
            and 0 <= example.labels.get("answer") < len(source.labels["answer"].names) == 13
        )


def test_answers_are_texts_where_a_task_writes_them(source):
    """Then the tokenizer learns the answers, too, and every other size stays that of the stored index."""
    tokenizer = c.SentencePiece(vocabulary=128, byte_fallback=False)
    data = dataclasses.replace(tiny().data, tokenizer=tokenizer, rows={**tiny().data.rows, "answer": 20})
    found = build_source(data, "train", labels={"answer": "text", "transcript": "text"})
    assert len(found) == len(source) and found.tokenizer.decode(found.tokenizer.encode("rectangle")) == "rectangle"
    for number in (0, 17, len(source) - 1):
        one, other = found[number], source[number]
        assert one.labels["answer"] == source.labels["answer"].names[other.labels["answer"]]
        assert one.inputs["text"] == other.inputs["text"]
        assert found.sizes["answer"][number] == len(found.tokenizer.to_write(one.labels["answer"]))
    assert np.array_equal(np.asarray(found.sizes["speech"]).reshape(-1), source.sizes["speech"])


def test_unknown_split():
    with pytest.raises(UserError, match="no split 'dev'"):
        SpokenEasyVQAExamples("/tmp", "dev")


@pytest.mark.parametrize("module, package", [("espeakng_loader", "espeakng-loader"), ("easy_vqa", "easy-vqa")])
def test_without_what_makes_it_one_line_says_what_to_install(tmp_path, monkeypatch, module, package):
    monkeypatch.setitem(sys.modules, module, None)  # as where it is not installed
    with pytest.raises(UserError, match=rf"made with {package}, not installed here: pip install 'mmjax\[quickstart\]'"):
        prepare(tmp_path / "data", 60)
    assert not (tmp_path / "data").exists()


def prepare_in_a_process(directory):
    code = f"from mmjax.data.spoken_easy_vqa import prepare\nif __name__ == '__main__': prepare({str(directory)!r}, 60)"
    script = directory.parent / "prepare.py"
    script.write_text(code)
    return subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_an_interrupted_preparation_leaves_nothing_half_made(tmp_path):
    directory = tmp_path / "data"
    killed = prepare_in_a_process(directory)
    while not (directory / ".spoken_easy_vqa_60.preparing").exists() and killed.poll() is None:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (directory / "spoken_easy_vqa_60").exists()
    # Two at once now: one prepares, the other waits for it.
    both = [prepare_in_a_process(directory) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert sorted(os.listdir(directory)) == [".spoken_easy_vqa_60.lock", "spoken_easy_vqa_60"]
    stamp = (prepare(directory, 60) / "dataset_info.json").stat().st_mtime_ns
    assert (prepare(directory, 60) / "dataset_info.json").stat().st_mtime_ns == stamp, "prepared once"


@pytest.mark.slow
def test_recordings_are_the_same_however_the_work_is_shared(monkeypatch):
    from mmjax.data import spoken_easy_vqa_builder as builder

    texts = ["is there a circle?", "what color is the shape?"]
    wanted = [(text, voice) for voice in VOICES["train"][:3] for text in texts]
    by_cores = []
    for cores in (1, 3):
        monkeypatch.setattr(builder.os, "cpu_count", lambda cores=cores: cores)
        # Decoded: an OGG file carries a serial number that libsndfile draws at random.
        by_cores.append({which: read_audio(data) for which, (data, _) in builder._speak_all(wanted).items()})
    assert by_cores[0].keys() == set(wanted)
    for which, samples in by_cores[0].items():
        np.testing.assert_array_equal(samples, by_cores[1][which])


def batches(source, host=0, hosts=1, **options):
    config = tiny()
    layout = build_layout(config, source.tokenizer)
    return Batches(source, layout, build_sampler(config, layout, source), Share((host,), hosts), **options)


def same(one, other):
    return (
        all(np.array_equal(a, b) for n in one for a, b in zip(one[n], other[n], strict=True))
        and one.keys() == other.keys()
    )


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_hold_the_batch_of_one(source, hosts):
    whole = batches(source)[5]
    parts = [batches(source, host, hosts)[5] for host in range(hosts)]
    joined = {
        name: type(stream)(*(np.concatenate(arrays) for arrays in zip(*(part[name] for part in parts), strict=True)))
        for name, stream in whole.items()
    }
    assert same(whole, joined)


def test_prefetching_in_threads_changes_nothing(source):
    direct = batches(source)
    for step, batch in enumerate(prefetch(batches(source), 3, 9, threads=4), 3):
        assert same(batch, direct[step])


def test_segments_mean_the_same_example_in_every_stream(source):
    batch = batches(source)[0]
    numbers = batch["examples"]
    for row in range(len(numbers.segments)):
        for slot in np.flatnonzero(numbers.segments[row]):
            example = source[numbers.features[row, slot]]
            segment = slot + 1
            text = batch["text"].features[row][batch["text"].segments[row] == segment]
            if len(text):
                assert source.tokenizer.decode(text) == example.inputs.get("text")
            speech = batch["speech"].features[row][batch["speech"].segments[row] == segment]
            if len(speech):
                samples = example.inputs["speech"]()
                np.testing.assert_array_equal(speech.reshape(-1)[: len(samples)], samples)
            assert batch["answer"].features[row, slot] == example.labels.get("answer")
            assert len(text) or len(speech), "every example shows something"


class Damaged:
    """A source of which some pictures are broken."""

    def __init__(self, source, broken):
        self._source, self._broken = source, broken
        self.sizes, self.tokenizer, self.labels = source.sizes, source.tokenizer, source.labels

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        example = self._source[index]
        return example._replace(inputs={**example.inputs, "image": b"broken"}) if self._broken(index) else example


@pytest.mark.parametrize("share, limit", [(0.4, 0.05), (1.0, 0.05), (0.4, 0.2)])
def test_a_run_that_cannot_read_its_data_stops_within_the_first_examples(source, share, limit, capsys):
    """Counted from the first on; the message says how many of which kind, the first of them, and what to do."""
    tried = []

    def broken(index):
        tried.append(index)
        return index % 5 < 5 * share

    failing = batches(Damaged(source, broken), largest_share_dropped=limit)
    with pytest.raises(UserError) as raised:
        for _ in prefetch(failing, 0, 20):
            pass
    assert len(tried) <= 64
    said = str(raised.value)
    assert re.search(
        r"\d+ of the first \d+ examples cannot be used \(\d+ unknown format; the first, example \d+: cannot", said
    )
    assert "data.filters.largest_share_dropped" in said and "mmjax data build" in said
    assert capsys.readouterr().err.count("is left out (unknown format)") == 1, (
        "the first is said at once, others counted"
    )


CONFIG = """
from mmjax import config as c

config = c.Experiment(
    name="it", steps=30,
    data=c.Data(
        source=c.Manifest(splits={{"train": {list!r}, "test": {list!r}}}),
        batch_rows=2, rows={{"speech": 400, "examples": 4}}, subsets={{"speech": 1.0}},
    ),
    model=c.Multimodal(
        encoders={{"speech": c.Conformer(layers=1, width=8, heads=1, stem=c.StridedStem(channels=2))}},
        fusion=c.Add(width=8), tasks={{"answer": c.Classify(outputs=2)}},
    ),
    optimizer=c.Optimizer(schedule=c.WarmupCosine(peak=1e-3, warmup=2, steps=30)),
    evaluation=c.Evaluation(subsets=("speech",)),
)
"""


@pytest.mark.slow
def test_training_on_a_list_of_which_much_cannot_be_decoded_ends_at_once_with_exit_code_2(
    tmp_path, capsys, monkeypatch
):
    """What a header cannot tell: 40 of 100 recordings hold values that are no numbers."""
    monkeypatch.setenv("MMJAX_DATA", str(tmp_path / "data"))
    for number in range(100):
        value = np.nan if number % 5 < 2 else 0.1
        soundfile.write(tmp_path / f"{number}.wav", np.full(4_000, value), 8_000, subtype="FLOAT")
    listed = [{"speech": f"{number}.wav", "answer": "ab"[number % 2]} for number in range(100)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, listed)))
    (tmp_path / "it.py").write_text(CONFIG.format(list=str(tmp_path / "list.jsonl")))
    assert cli.main(["train", str(tmp_path / "it.py"), "--run-dir", str(tmp_path / "run")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    lost, tried = map(int, re.search(r"error: (\d+) of the first (\d+) examples cannot be used", said).groups())
    assert lost < tried <= 64
    assert re.search(
        rf"\({lost} not finite; the first, example \d+: the recording of \S*list\.jsonl:\d+ holds values", said
    )


def test_a_few_unreadable_examples_stop_no_run(source):
    """One in fifty, where one in twenty may be; also when the first two that are read are among them."""
    damaged = batches(Damaged(source, lambda index: index % 50 == 0))
    for step in range(30):
        damaged[step]
    assert damaged.skipped
    assert not too_many(2, 2, 0.05) and too_many(4, 4, 0.05)
    assert not too_many(5_100, 100_000, 0.05) and too_many(6_000, 100_000, 0.05)
    assert too_many(1, 1_000, 0.0) and not too_many(1_000, 1_000, 1.0)


def test_a_small_set_loses_no_larger_share_than_a_large_one(tmp_path):
    for number in range(30):
        soundfile.write(tmp_path / f"{number}.wav", np.full(8_000, 0.1), 16_000, subtype="FLOAT")
    for number in (3, 17):
        soundfile.write(tmp_path / f"{number}.wav", np.full(8_000, np.nan), 16_000, subtype="FLOAT")
    listed = [{"speech": f"{number}.wav"} for number in range(30)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, listed)))
    found = corpus(ManifestRecords(str(tmp_path / "list.jsonl")), tmp_path)
    layout = Layout.of({"speech": 400, "examples": 8})
    for limit, stops in ((0.05, True), (0.07, False)):  # 2 of 30
        sampler = Sampler(layout.positions(found.sizes), layout.rows, {"speech": 1.0}, 1, epochs=1)
        failing = Batches(found, layout, sampler, largest_share_dropped=limit)
        with pytest.raises(UserError, match="2 not finite") if stops else nullcontext():
            for step in range(len(sampler)):
                failing[step]


def test_a_step_without_examples_is_an_error_in_training_alone(source):
    failing = batches(Damaged(source, lambda index: True), largest_share_dropped=1.0)
    with pytest.raises(
        UserError, match=r"none of the examples of step 0 can be used \(\d+ unknown format; the first, example"
    ):
        failing[0]
    measured = batches(Damaged(source, lambda index: True), largest_share_dropped=1.0, measuring=True)
    assert not measured[0]["examples"].segments.any()


def test_an_unreadable_example_is_set_aside_and_counted(source):
    damaged = batches(Damaged(source, lambda index: index % 5 == 0), largest_share_dropped=0.5)
    seen = [x for step in range(20) for x in damaged[step]["examples"].features[damaged[step]["examples"].segments > 0]]
    assert damaged.skipped and all(index % 5 == 0 for index in damaged.skipped)
    assert "cannot decode the image of example" in next(iter(damaged.skipped.values()))
    assert not set(damaged.skipped) & set(map(int, seen))


def test_the_list_of_unreadable_examples_outlives_the_process(tmp_path):
    note_skipped(tmp_path, {30: "broken", 5: "cut off"})
    assert note_skipped(tmp_path, {5: "still cut off", 7: "empty"}) == (3, tmp_path / "skipped.txt")
    assert (tmp_path / "skipped.txt").read_text() == "5\tstill cut off\n7\tempty\n30\tbroken\n"


def test_share_of_padding(source):
    shares = share_of_padding(batches(source)[0])
    assert set(shares) == {"speech", "image", "text", "transcript", "examples", "answer"}
    assert all(0 <= share < 1 for share in shares.values())
