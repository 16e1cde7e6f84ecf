"""Replies of language models: `Run.generate`, `mmjax generate` and `mmjax chat`."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import mmjax.config as c
from mmjax.cli import main
from mmjax.data.text import Tokenizer
from mmjax.decode import Sampling, choose, limited
from mmjax.errors import UserError
from mmjax.generation import Generator, generate
from mmjax.interchange import directories
from mmjax.run import Run
from mmjax.train.build import build_layout, build_model, facts_of_run, resolved
from mmjax.train.directory import UNTRAINED
from mmjax.train.step import init_parameters, unboxed
from tests.test_conversations import home, user  # noqa: F401, a fixture

tokenizers = pytest.importorskip("tokenizers")

SAMPLINGS = {
    "greedy": Sampling(),
    "sampled": Sampling(temperature=1.5, top_k=30, top_p=0.95, min_p=0.01, repetition_penalty=1.3, seed=3),
}


def make_run(folder, files, fusion, **changes):
    """A language model that was not trained, as an import is, with a tiny image encoder."""
    llama = c.BlockStyle(norm="rms", activation="silu", gated=True, bias=False, key_value_heads=2)
    tokenizer = c.HuggingFaceTokenizer(file=str(files / "tokenizer.json"), chat_template="chatml")
    decoder = c.TextDecoder(layers=2, width=32, heads=4, mlp=48, cross_attention=False, block=llama, tied=False)
    decoder = decoder.clone(**changes)
    loaded = Tokenizer.load(files / "tokenizer.json", "chatml")
    config = c.Experiment(
        name="tiny",
        steps=1,
        data=c.Data(
            source=c.Manifest(splits={"test": "test.tsv"}),
            inputs={"text": c.Conversation()},
            tokenizer=tokenizer,
            rows={"text": 64, "image": 8, "examples": 2},
            subsets={"text+image": 1.0},
            batch_rows=8,
        ),
        model=c.Multimodal(
            encoders={
                "text": c.TokenIds(),
                "image": c.ViT(patch=4, image_size=8, layers=1, width=16, heads=2, mlp=32),
            },
            tasks={"chat": c.CausalLM(media=("image",), fusion=fusion, decoder=decoder.clone(vocabulary=len(loaded)))},
        ),
        optimizer=c.Optimizer(schedule=c.Constant(peak=1e-3)),
    )
    batch = build_layout(config, loaded).empty(1)
    params = jax.jit(lambda: unboxed(init_parameters(build_model(config.model), batch, 0)))()
    directories.write(folder, flatten_dict(params, sep="/"), UNTRAINED, {"config.json": c.to_dict(config)})
    for name, data in loaded.files.items():
        (folder / name).write_bytes(data)
    return Run(folder)


@pytest.fixture(scope="module", params=["gated", pytest.param("soft", marks=pytest.mark.slow)])
def run(request, tmp_path_factory, home):  # noqa: F811
    fusion = {"gated": c.GatedCrossAttention(every=1, gate=1.0), "soft": c.SoftTokens()}[request.param]
    return make_run(tmp_path_factory.mktemp("run") / request.param, home, fusion)


def prompts(home):  # noqa: F811
    image = {"type": "image", "path": str(home / "x.png")}
    other = {"type": "image", "path": str(home / "y.png")}
    return [
        "what is it?",
        [user(image, {"type": "text", "text": "what is red?"})],
        [
            user("it is a dog"),
            {"role": "assistant", "content": "Yes."},
            user({"type": "text", "text": "and"}, other, image),
        ],
    ]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_reply_does_not_depend_on_the_other_prompts_of_its_batch(run, home, sampling):  # noqa: F811
    asked = prompts(home)
    together = run.generate(asked, SAMPLINGS[sampling], length=12, rows=3)
    assert len({one.ids for one in together}) == 3
    if sampling == "sampled":
        assert run.generate(asked[::-1], SAMPLINGS[sampling], length=12, rows=4)[::-1] == together
        other = dataclasses.replace(SAMPLINGS[sampling], seed=4)
        assert run.generate(asked, other, length=12, rows=3) != together
    else:
        assert run.generate(asked, SAMPLINGS[sampling], length=12, rows=1) == together


@pytest.mark.slow
def test_a_reply_is_what_its_likelihood_says(run, home):  # noqa: F811
    """The probability of a greedy reply is that of its tokens; it is larger than that of other replies."""
    generator = Generator(run)
    for prompt in prompts(home):
        reply = generator.replies([prompt], length=4)[0]
        likely, *others = generator.likelihoods(prompt, [reply.text, "A dog.", "it is red", ""])
        assert np.isfinite([likely, *others]).all() and len(set(others)) == 3
        assert likely < 0


def test_a_reply_ends_as_the_chat_template_ends_it(run, home):  # noqa: F811
    """A config need not say with which token, and an evaluation does not write on after it."""
    told = resolved(run.config, facts_of_run(run.directory, run.config)).model.tasks["chat"].ends
    end = tokenizers.Tokenizer.from_file(str(home / "tokenizer.json")).token_to_id("<|im_end|>")
    assert told == (end,) and run.config.model.tasks["chat"].ends == ()


def test_a_chat_needs_a_template(run, home, tmp_path, capsys):  # noqa: F811
    shutil.copytree(run.directory, tmp_path / "run")
    (tmp_path / "run" / "tokenizer_config.json").unlink()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["data"] |= {"inputs": {}, "tokenizer": config["data"]["tokenizer"] | {"chat_template": None}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert main(["chat", str(tmp_path / "run")]) == 2
    assert "has no chat template; put the model's tokenizer_config.json" in capsys.readouterr().err


def test_words_come_one_by_one_and_stop(run, home):  # noqa: F811
    generator = Generator(run)
    whole = generator.replies(["what is it?"], length=16)[0]
    assert "".join(generator.words("what is it?", length=16)) == whole.text
    words = whole.text[3:6]
    stopped = generator.replies(["what is it?"], length=16, stop=[words])[0]
    assert stopped.ended == "stop" and stopped.text == whole.text[: whole.text.index(words)]
    assert "".join(generator.words("what is it?", length=16, stop=[words])) == stopped.text


def test_generate_continues_where_it_was_interrupted(run, home, tmp_path, capsys):  # noqa: F811
    source, out = tmp_path / "prompts.jsonl", tmp_path / "replies.jsonl"
    image = {"type": "image", "path": str(home / "x.png")}
    rows = [
        {"messages": [user(image, {"type": "text", "text": "it?"}), {"role": "assistant", "content": "A dog."}]},
        {"name": "second", "messages": [user("Hi")]},
        {"text": "what is it?"},
    ]
    source.write_text("\n".join(map(json.dumps, rows)))
    command = ["generate", str(run.directory), str(source), "-o", str(out), "--length", "6", "--rows", "2"]
    assert main(command) == 0
    whole = out.read_text()
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [line["name"] for line in lines] == ["1", "second", "3"]
    assert lines[0]["reference"] == "A dog." and "reference" not in lines[1]
    out.write_text(whole.splitlines(keepends=True)[0])
    assert main(command) == 0
    assert out.read_text() == whole
    capsys.readouterr()
    assert main([*command[:-1], "1", "--length", "7"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "was made with other settings: --length is 6 there and 7 here; name another file (--out), or delete" in said
    assert out.read_text() == whole


def test_replies_to_other_prompts_are_not_taken_for_those_of_this_file(run, home, tmp_path):  # noqa: F811
    """Prompts without names have numbers, which those of any other file have, too."""
    source, out, picture = tmp_path / "prompts.jsonl", tmp_path / "replies.jsonl", tmp_path / "x.png"
    shutil.copy(home / "x.png", picture)
    generator, rows = Generator(run), [{"text": "Hi"}, {"messages": [user("<image> it?")], "image": "x.png"}]

    def write(*rows):
        source.write_text("\n\n".join(map(json.dumps, rows)))
        return generate(generator, source, out, length=2)

    assert write(*rows) == 2 and write(*rows) == 2 and write(*rows, {"text": "Hi"}) == 3
    for others, message in (
        ([{"text": "Hello"}, *rows[1:], {"text": "Hi"}], "1 has changed since .* was begun; name another file"),
        ([{"id": "a", "text": "Hi"}], "has 3 results, but there are 1 items"),
        ([{"id": "a", "text": "Hi"}, *rows[1:], {"text": "Hi"}], "line 1 is about 1, not about a"),
    ):
        with pytest.raises(UserError, match=message):
            write(*others)
    shutil.copy(home / "y.png", picture)
    with pytest.raises(UserError, match="3 has changed since"):  # the number of its line
        write(*rows, {"text": "Hi"})
    (tmp_path / "replies.jsonl.made.json").unlink()
    with pytest.raises(UserError, match="no replies.jsonl.made.json beside .*replies.jsonl, so its origin is unknown"):
        write(*rows, {"text": "Hi"})
    out.unlink()
    assert write({"text": "Hello"}) == 1


def test_a_wrong_line_of_a_prompt_file_is_named(run, home, tmp_path):  # noqa: F811
    source, out, generator = tmp_path / "prompts.jsonl", tmp_path / "replies.jsonl", Generator(run)
    shutil.copy(home / "x.png", tmp_path / "x.png")
    asked, good = [user("<image> what is it?")], {"text": "Hi"}
    for row, message in (
        ({"messages": asked, "image": ["x.png", "x.png"]}, "line 2 of .* lists 2 for image, but .* place only 1"),
        ({"messages": asked, "image": "gone.png"}, r"line 2 of .*prompts.jsonl: .*gone.png"),
        ({"messages": asked, "image": "x.png", "images": ["x.png"]}, "line 2 of .* lists image in two columns"),
        ({"messages": [user({"type": "audio", "path": "x.png"})]}, "line 2 of .*prompts.jsonl: "),
        ({"id": "1", "text": "Hi"}, "line 2 of .* has the name '1', like line 1 of"),
    ):
        source.write_text(f"{json.dumps(good)}\n{json.dumps(row)}\n")
        with pytest.raises(UserError, match=message):
            generate(generator, source, out, length=2)


def test_a_terminal_conversation_attaches_files_and_keeps_what_was_said(run, home, capsys, monkeypatch):  # noqa: F811
    lines = iter(["/image nothing.png", f"/image {home / 'x.png'}", "what is it?", "/foo", "and now?", "/exit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    assert main(["chat", str(run.directory), "--length", "5"]) == 0
    shown = capsys.readouterr().out
    assert "nothing.png" in shown and "x.png; write a message" in shown and "there is no command /foo" in shown
    picture = [{"type": "image", "image": str(home / "x.png")}, {"type": "text", "text": "what is it?"}]
    first = run.generate([[user(*picture)]], length=5)[0].text
    talk = [user(*picture), {"role": "assistant", "content": first}, user("and now?")]
    assert first in shown and run.generate([talk], length=5)[0].text in shown


def test_a_file_is_attached_as_a_terminal_pastes_its_name(run, home, tmp_path, capsys, monkeypatch):  # noqa: F811
    for name in ("0 1.png", "it's.png"):
        shutil.copy(home / "x.png", tmp_path / name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    lines = [
        *(
            "/image ~/it's.png",
            '/image "0 1.png"',
            "/image 0\\ 1.png",
            "/image 0 1.png",
            "/image '0 1.png' ~/it\\'s.png",
        ),
        *("/image", "/image .", "/system Be brief.", "/exit"),
    ]
    said = iter(lines)
    monkeypatch.setattr("builtins.input", lambda _: next(said))
    assert main(["chat", str(run.directory)]) == 0
    shown = capsys.readouterr().out.splitlines()
    spaced, quoted = (
        "attached 0 1.png; write a message about it",
        f"attached {tmp_path}/it's.png; write a message about it",
    )
    assert shown[1:] == [
        *(quoted, spaced, spaced, spaced, spaced, quoted, "name a file: /image FILE"),
        ". is a folder; name one file: /image FILE",
        f"no longer attached: {tmp_path}/it's.png, 0 1.png, 0 1.png, 0 1.png, 0 1.png, {tmp_path}/it's.png",
    ]


def test_limits_keep_the_most_probable_tokens():
    logits = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.06, 0.04]]))

    def kept(**limits):
        return np.isfinite(limited(logits, Sampling(temperature=1.0, **limits)))[0].tolist()

    assert kept(top_k=2) == [True, True, False, False, False]
    assert kept(top_p=0.65) == [True, True, False, False, False]
    assert kept(top_p=0.75) == [True, True, True, False, False]
    assert kept(min_p=0.5) == [True, True, True, False, False]
    assert kept(top_k=4, min_p=0.6) == [True, True, False, False, False]


def test_samples_have_the_probabilities_of_the_model():
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    draw = jax.jit(
        lambda n: choose(jnp.log(probabilities)[None], jnp.zeros((1, 4), bool), n, Sampling(temperature=1.0))[0]
    )
    counts = np.bincount(np.array(jax.vmap(draw)(jnp.arange(4000))), minlength=4) / 4000
    np.testing.assert_allclose(counts, probabilities, atol=0.03)


def test_a_penalty_makes_repeated_tokens_less_probable():
    logits, seen = jnp.array([[2.0, 1.9, -1.0]]), jnp.array([[True, False, False]])
    assert choose(logits, seen, 0, Sampling())[0] == 0
    assert choose(logits, seen, 0, Sampling(repetition_penalty=1.2))[0] == 1


@pytest.mark.parametrize("idle", [{"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, {"seed": 1}])
def test_settings_of_random_tokens_without_a_temperature_are_refused(idle):
    with pytest.raises(UserError, match=f"{next(iter(idle))} has no effect without a temperature"):
        Sampling(**idle).check()
    Sampling(temperature=0.7, **idle).check()


def test_a_setting_that_beams_or_greedy_tokens_ignore_is_refused_before_a_model_is_loaded(capsys):
    for options, message in (
        (["--seed", "0"], "seed has no effect without a temperature"),
        (["--top-p", "0.9"], "top_p has no effect without a temperature"),
    ):
        for command in (["chat", "no_run"], ["generate", "no_run", "a.jsonl", "-o", "b.jsonl"]):
            assert main([*command, *options]) == 2
            assert message in capsys.readouterr().err
    for sampling, stop, name in (
        (Sampling(repetition_penalty=1.2), (), "repetition_penalty"),
        (Sampling(temperature=0.5), (), "temperature"),
        (Sampling(), ("end",), "stop"),
    ):
        with pytest.raises(UserError, match=f"without {name}; leave {name} or beams out"):
            Generator.check_sampling(sampling, stop, beams=3)


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": 0}, {"repetition_penalty": 0.0}])
def test_settings_outside_of_their_range_are_refused(wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))} cannot be"):
        Sampling(**wrong).check()


@pytest.mark.parametrize(
    "weights", [pytest.param(kind, marks=pytest.mark.slow) for kind in ("bfloat16", "int4")] + ["int8"]
)
def test_weights_of_few_bits_change_the_results_a_little(run, home, weights):  # noqa: F811
    few = Run(run.directory, weights=weights)
    asked, answers = prompts(home)[1], ["A dog.", "it is red", "Yes."]
    exact, close = (np.array(Generator(one).likelihoods(asked, answers)) for one in (run, few))
    bound = {"bfloat16": 0.05, "int8": 0.05, "int4": 0.5}[weights]
    assert 0 < np.abs(close - exact).max() < bound
    sizes = [sum(x.nbytes for x in jax.tree.leaves(one.device_params)) for one in (run, few)]
    assert sizes[1] < 0.8 * sizes[0]


@pytest.mark.slow
def test_a_reply_fills_the_positions_of_the_decoder(home, tmp_path):  # noqa: F811
    """The last token of a reply needs no position. Replies are those of a decoder with more positions."""
    asked, more, run = (
        "what is it?",
        *(
            make_run(
                tmp_path / str(count), home, c.GatedCrossAttention(every=1, gate=1.0), positions=c.Learned(length=count)
            )
            for count in (30, 20)
        ),
    )
    run.params = jax.tree.map(lambda x: x[:20] if x.shape == (30, 32) else x, more.params)
    generator, wide = Generator(run), Generator(more)
    prompt = len(generator.cut(generator.given(asked))["text"][0])
    longest = 20 - prompt + 1
    whole, expected = (one.replies([asked], length=longest)[0] for one in (generator, wide))
    assert len(whole.ids) == longest and whole.ids == expected.ids
    assert np.isfinite(generator.best(asked, 2, length=longest)[0].score)
    with pytest.raises(UserError, match=f"so that this reply may have {longest}; shorten the prompt"):
        generator.replies([asked], length=longest + 1)


@pytest.mark.slow
def test_one_beam_is_greedy_and_more_beams_find_more_probable_replies(run, home):  # noqa: F811
    generator = Generator(run)
    for prompt in prompts(home)[1:]:
        (greedy,) = generator.replies([prompt], length=6)
        (one,) = generator.best(prompt, 1, length=6, penalty=0.0)
        several = generator.best(prompt, 8, length=6, penalty=0.0)
        assert one.ids == greedy.ids
        assert len({reply.ids for reply in several}) == 8
        assert several[0].score >= one.score
        assert sorted((reply.score for reply in several), reverse=True) == [reply.score for reply in several]
        assert generator.replies([prompt], length=6, beams=8)[0].ids == generator.best(prompt, 8, length=6)[0].ids
