"""Imported models as runs that were not trained: predictions equal to their own library's, evaluation, fine-tuning."""

import dataclasses
import json

import numpy as np
import pytest

from mmjax import config as c
from mmjax.cli import main
from mmjax.data.audio import write_audio
from mmjax.errors import UserError
from mmjax.interchange.convert import import_model
from mmjax.interchange.recordings import recordings
from mmjax.models.roles import by_path
from mmjax.run import Run, evaluate_run
from mmjax.train.loop import train

tokenizers = pytest.importorskip("tokenizers")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.reference

RATE = 16_000
NAMES = ("endoftext", "startoftranscript", "en", "de", "translate", "transcribe", "notimestamps")
SPECIAL = [f"<|{name}|>" for name in NAMES]


def spelling(path):
    """A tokenizer.json of 256 characters, in which id 0 is an ordinary piece, and the special tokens from 256 on."""
    characters = [chr(code) for code in (*range(0x20, 0x7F), *range(0x100, 0x100 + 161))]
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={x: i for i, x in enumerate(characters)}, merges=[]))
    made.decoder = tokenizers.decoders.Fuse()
    made.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    made.save(str(path))
    return made


def louder(model, factor):
    """Larger weights, with which the outputs of a random model depend on its inputs."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1 and "encoder.embed_positions" not in name:  # those of the encoder are sinusoids
                value.copy_(factor * torch.randn(value.shape) / value.shape[-1] ** 0.5)
    return model.eval()


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    """A tiny Whisper with random weights: (its model in transformers, its tokenizer, the directory of its import)."""
    home = tmp_path_factory.mktemp("whisper")
    config = transformers.WhisperConfig(
        vocab_size=270,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_source_positions=50,
        max_target_positions=24,
        pad_token_id=256,
        bos_token_id=256,
        eos_token_id=256,
        decoder_start_token_id=257,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = louder(transformers.WhisperForConditionalGeneration(config), 1.5)
    model.generation_config.suppress_tokens = [5, *range(257, 270)]
    model.generation_config.begin_suppress_tokens = [32, 256]
    model.generation_config.is_multilingual = True
    model.generation_config.alignment_heads = [[0, 1]]
    model.save_pretrained(home / "theirs")
    tokenizer = spelling(home / "theirs" / "tokenizer.json")
    assert import_model(home / "theirs", home / "ours")["certificate"]["holds"]
    return model, tokenizer, home / "ours"


def greedy(model, samples, prompt, length=20):
    """transformers' own encoder, decoder and rules of suppression, token by token."""
    extract = transformers.WhisperFeatureExtractor(feature_size=80)
    features = extract(samples, sampling_rate=RATE, max_length=RATE, return_tensors="pt").input_features
    rules = transformers.generation.logits_process
    never = rules.SuppressTokensLogitsProcessor(model.generation_config.suppress_tokens)
    first = rules.SuppressTokensAtBeginLogitsProcessor(model.generation_config.begin_suppress_tokens, len(prompt))
    ids = torch.tensor([prompt])
    with torch.no_grad():
        encoded = model.get_encoder()(features)
        while ids.shape[1] < len(prompt) + length:
            scores = model(encoder_outputs=encoded, decoder_input_ids=ids).logits[:, -1]
            token = first(ids, never(ids, scores)).argmax(-1)
            if token == model.config.eos_token_id:
                break
            ids = torch.cat([ids, token[None]], dim=1)
    return ids[0, len(prompt) :].tolist()


def test_whisper_writes_what_its_own_library_writes(whisper, tmp_path, capsys):
    model, tokenizer, ours = whisper
    run, seen = Run(ours), set()
    (samples,) = recordings((15_000,), seed=0)
    write_audio(tmp_path / "one.wav", samples, RATE)
    for language, task in (("en", "transcribe"), ("de", "translate")):
        prompt = [257, *(tokenizer.token_to_id(f"<|{x}|>") for x in (language, task, "notimestamps"))]
        ids = greedy(model, samples, prompt)
        text = run.predict((samples, RATE), tags={"language": language, "task": task})["transcript"]
        assert text == tokenizer.decode(ids).strip() and len(ids) > 3
        seen.add(text)
    assert len(seen) == 2, "the prompt matters"
    assert main(["predict", str(ours), "--speech", str(tmp_path / "one.wav"), "--language", "de", "--json"]) == 0
    json.loads(capsys.readouterr().out)
    with pytest.raises(UserError, match="no special token '<|xx|>' for the language 'xx'"):
        run.predict((samples, RATE), tags={"language": "xx"})


def test_whisper_times_tokens_as_its_own_library(whisper):
    """transformers' attention weights, median filter and time warping, in the order of OpenAI's timing.py.

    One more token, before the text, takes part for the silence at the beginning.
    """
    theirs = transformers.models.whisper.generation_whisper
    model, tokenizer, ours = whisper
    run, text = Run(ours), "the fox, a hen"
    (samples,) = recordings((13_000,), seed=0)
    frames = -(-13_000 // 320)  # of 50, the rest is silence that was added
    given = [257, *(tokenizer.token_to_id(f"<|{x}|>") for x in ("en", "transcribe", "notimestamps"))]
    extract = transformers.WhisperFeatureExtractor(feature_size=80)
    features = extract(samples, sampling_rate=RATE, max_length=RATE, return_tensors="pt").input_features
    ids = torch.tensor([[*given, *tokenizer.encode(text).ids]])
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(features, decoder_input_ids=ids, output_attentions=True)
    weights = output.cross_attentions[0][:, 1:2, :, :frames]
    weights = weights / weights.sum(-1, keepdim=True)
    std, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    matrix = theirs._median_filter((weights - mean) / std, 7).mean(1)[0, len(given) - 2 :]
    of_tokens, of_frames = theirs._dynamic_time_warping(-matrix.double().numpy())
    edges = of_frames[np.pad(np.diff(of_tokens), (1, 0), constant_values=1).astype(bool)][1:]
    expected = torch.softmax(output.logits[0, len(given) - 1 : -1], -1)[range(len(text)), ids[0, len(given) :]]

    characters = iter(run.align((samples, RATE), text).characters)  # each is a token
    for number, letter in enumerate(text):
        if letter != " ":
            one = next(characters)
            assert one.word == letter
            times = pytest.approx(0.02 * edges[number]), pytest.approx(0.02 * edges[number + 1])
            assert (one.start, one.end, one.confidence) == (*times, pytest.approx(expected[number].item(), rel=1e-3))
    assert len(set(edges)) > 3


def test_the_config_of_an_import_is_that_of_its_model(whisper):
    _, _, ours = whisper
    config = c.load(ours / "config.json")
    task = config.model.tasks["transcript"]
    assert (task.start_token, task.end_token, task.given, task.projection) == (257, 256, 3, False)
    assert task.suppress == (5, *range(257, 270)) and task.suppress_first == (32, 256)
    assert task.alignment_heads == ((0, 1),)
    assert c.imported(ours) == config.model.encoders["speech"] and c.imported(ours, "decoder") == task.decoder


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """A manifest of six recordings of noise with words."""
    home = tmp_path_factory.mktemp("spoken")
    words, lines = ("up", "down", "left", "right", "stop", "go"), ["speech\ttranscript"]
    for number, samples in enumerate(recordings(tuple(9_000 + 700 * i for i in range(6)), seed=2)):
        write_audio(home / f"{number}.wav", samples, RATE)
        lines.append(f"{number}.wav\t{words[number]}")
    (home / "train.tsv").write_text("\n".join(lines) + "\n")
    return home


def fine_tuned(ours, spoken):
    """A config that fine-tunes an import with its encoder frozen."""
    config = c.load(ours / "config.json")
    manifest = c.Manifest(splits=dict.fromkeys(("train", "test"), str(spoken / "train.tsv")))
    rows = {"speech": 200, "transcript": 20, "examples": 2}
    data = dataclasses.replace(config.data, source=manifest, batch_rows=3, rows=rows, directory=str(spoken / "cache"))
    optimizer = c.Optimizer(schedule=c.Constant(peak=3e-3), groups={"encoders.speech": c.Group(frozen=True)})
    fields = {"name": "tuned", "steps": 12, "data": data, "optimizer": optimizer, "initial": {"**": str(ours)}}
    log = c.Log(every_steps=1, tensorboard=False)
    evaluation = c.Evaluation(subsets=())  # measured by a test of its own
    return dataclasses.replace(config, **fields, log=log, evaluation=evaluation)


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


@pytest.mark.slow
def test_an_import_is_fine_tuned_with_its_encoder_frozen(whisper, spoken, tmp_path):
    _, _, ours = whisper
    train(fine_tuned(ours, spoken), tmp_path / "run")
    found = losses(tmp_path / "run")
    assert np.mean(found[-3:]) < 0.7 * np.mean(found[:3])
    before, after = by_path(Run(ours).params), by_path(Run(tmp_path / "run").params)
    equal = {path for path in before if np.array_equal(before[path], after[path])}
    assert equal == {path for path in before if path.startswith("encoders.speech.")}


def test_an_import_is_evaluated_on_other_data(whisper, spoken):
    _, _, ours = whisper
    where = ["--data.source.splits.test", str(spoken / "train.tsv"), "--data.directory", str(spoken / "cache")]
    result = evaluate_run(ours, overrides=where)
    assert result["step"] == 0 and result["subsets"]["speech"]["examples"] == 6
    assert result["subsets"]["speech"]["transcript/wer"] > 0


def test_a_language_model_continues_a_text_as_its_own_library_does(tmp_path, capsys):
    config = transformers.LlamaConfig(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=257,
        eos_token_id=[256, 10],
        pad_token_id=256,
    )
    model = louder(transformers.LlamaForCausalLM(config), 1.5)
    model.save_pretrained(tmp_path / "theirs")
    tokenizer = spelling(tmp_path / "theirs" / "tokenizer.json")
    import_model(tmp_path / "theirs", tmp_path / "ours")
    run, ended = Run(tmp_path / "ours"), 0
    for text in ("The capital of France is", "a", "one two three"):
        ids = torch.tensor([tokenizer.encode(text).ids])
        wanted = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=False)
        wanted = wanted[0, ids.shape[1] :].tolist()
        if wanted[-1] in config.eos_token_id:
            wanted, ended = wanted[:-1], ended + 1
        assert run.predict(text=text)["continuation"] == tokenizer.decode(wanted)
    assert main(["predict", str(tmp_path / "ours"), "--text", "a"]) == 0
    assert capsys.readouterr().out.startswith("continuation: ")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["T5", "MT5"])
def test_t5_writes_what_its_own_library_writes(tmp_path, kind):
    """Its decoder begins with a cache, in which distances are counted from each token that is written."""
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=264,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        decoder_start_token_id=257,
        eos_token_id=256,
        pad_token_id=258,
    )
    model = louder(getattr(transformers, f"{kind}ForConditionalGeneration")(config), 2.0)
    model.save_pretrained(tmp_path / "theirs")
    tokenizer = spelling(tmp_path / "theirs" / "tokenizer.json")
    import_model(tmp_path / "theirs", tmp_path / "ours")
    about = json.loads((tmp_path / "ours" / "config.json").read_text())
    about["data"]["rows"]["target"] = 24  # an untrained model seldom ends a text
    (tmp_path / "ours" / "config.json").write_text(json.dumps(about))
    run, seen = Run(tmp_path / "ours"), set()
    for text in ("translate: one two three", "a", "no"):
        ids = torch.tensor([tokenizer.encode(text).ids])
        wanted = model.generate(ids, max_new_tokens=24, do_sample=False)[0, 1:].tolist()
        wanted = tokenizer.decode(wanted[: wanted.index(256)] if 256 in wanted else wanted).strip()
        found = run.predict(text=text)["target"]
        assert found == wanted
        seen.add(found)
    assert len(seen) > 1, "the text matters"
    about["model"]["tasks"]["target"]["decoding"] = {"class": "Beam", "beams": 3, "length_penalty": 1.0}
    (tmp_path / "ours" / "config.json").write_text(json.dumps(about))
    run = Run(tmp_path / "ours")
    for text in ("translate: one two three", "a"):
        ids, options = torch.tensor([tokenizer.encode(text).ids]), dict(num_beams=3, num_return_sequences=3)
        wanted = model.generate(
            ids, max_new_tokens=24, do_sample=False, output_scores=True, return_dict_in_generate=True, **options
        )
        found = run.predict(text=text)["target/nbest"]
        np.testing.assert_allclose([one["score"] for one in found], wanted.sequences_scores, rtol=1e-3)
        for one, row in zip(found, wanted.sequences[:, 1:].tolist(), strict=True):
            assert one["text"] == tokenizer.decode([i for i in row if i not in (256, 258)]).strip()


def test_an_encoder_alone_has_no_task(tmp_path):
    model = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
    )
    model.save_pretrained(tmp_path / "theirs")
    import_model(tmp_path / "theirs", tmp_path / "ours")
    assert c.imported(tmp_path / "ours").width == 16
    with pytest.raises(UserError, match="has no decoder"):
        c.imported(tmp_path / "ours", "decoder")
    with pytest.raises(UserError, match="has no task; use its encoder in a config"):
        Run(tmp_path / "ours").predict(text="a")
