"""A chat reads only what is new, and writes what it would write if it read the whole conversation in each turn."""

import jax
import pytest

import mmjax.config as c
from mmjax.decode import Sampling
from mmjax.errors import UserError
from mmjax.generation import Chat, Generator, chat
from tests.test_conversations import home, user  # noqa: F401, a fixture
from tests.test_generation import make_run

tokenizers = pytest.importorskip("tokenizers")

FUSIONS = {
    "soft": c.SoftTokens(),
    "gated": c.GatedCrossAttention(every=1, gate=1.0),
    "gated, not in order": c.GatedCrossAttention(every=1, gate=1.0, in_order=False),
}


@pytest.fixture(
    scope="module", params=["soft", *(pytest.param(name, marks=pytest.mark.slow) for name in [*FUSIONS][1:])]
)
def run(request, tmp_path_factory, home):  # noqa: F811
    window = c.SlidingWindow(window=24, full_layers=(1,))
    return make_run(tmp_path_factory.mktemp("run") / "run", home, FUSIONS[request.param], sliding_window=window)


def turns(home):  # noqa: F811
    """What a user says in the turns of a conversation."""
    first, second = ({"type": "image", "path": str(home / name)} for name in ("x.png", "y.png"))
    return [
        user("it is a dog"),
        user(first, {"type": "text", "text": "what is red, and what is it? is it a dog?"}),
        user("what is it?"),
        user({"type": "text", "text": "and"}, second, {"type": "text", "text": "or"}, first),
        user("what is red?"),
    ]


@pytest.mark.parametrize("count", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_replies_are_those_of_a_generator_that_reads_everything(run, home, monkeypatch, count):  # noqa: F811
    """Each turn reads only new tokens, in chunks, and the cache grows."""
    monkeypatch.setattr(chat, "CHUNK", 16)
    monkeypatch.setattr(chat, "LEAST_ROOM", 64)
    generator, sampling, length = Generator(run), Sampling(repetition_penalty=1.3), 12
    talk, messages, kept = Chat(generator), [], []
    for said in turns(home)[:count]:
        messages = [*messages, said]
        text = "".join(talk.words(messages, sampling, length))
        expected = generator.replies([messages], sampling, length, rows=1)[0]
        assert text == expected.text and tuple(talk._read.ids[-len(expected.ids) :]) == expected.ids
        messages, kept = [*messages, {"role": "assistant", "content": "Yes."}], [*kept, messages]
    if count == 2:
        return
    assert talk._read.state.kept.cache.segments.shape[1] in (128, 256)
    # An earlier conversation, and one with another picture in an earlier message.
    other = [kept[1][0], *kept[1][1:-1], turns(home)[3]]
    for earlier in (kept[3], other, kept[4]):
        text = "".join(talk.words(earlier, sampling, length))
        assert text == generator.replies([earlier], sampling, length, rows=1)[0].text


def test_a_long_chat_compiles_seldom(run, home):  # noqa: F811
    """The same program reads all turns, and the tokens that are known are not read again."""
    talk, messages, read = Chat(Generator(run)), [], []
    advance = talk._generator.advance._cache_size()
    for number in range(5):
        messages.append(user(f"what is it{'?' * number}"))
        before = len(talk._read.ids) if talk._read else 0
        ids = talk._generator.conversation.prompt(messages, run.tokenizer)[0].tolist()
        known = talk._known(ids, [0] * len(ids), [])
        read.append(len(ids) - len(known.ids))
        "".join(talk.words(messages, length=4))
        messages.append({"role": "assistant", "content": "Yes."})
        assert len(talk._read.ids) > before
    assert talk._program._cache_size() == 1 and talk._generator.advance._cache_size() == advance + 1
    assert max(read[1:]) < 40 < len(ids)


def test_an_interrupted_reply_leaves_a_chat_that_goes_on(run, home):  # noqa: F811
    generator = Generator(run)
    talk, asked = Chat(generator), [user("what is it?")]
    words = talk.words(asked, length=8)
    next(words)
    words.close()
    expected = generator.replies([asked], length=8)[0]
    assert "".join(talk.words(asked, length=8)) == expected.text
    jax.tree.map(lambda x: x.delete(), talk._read.state)  # as an interruption within a step leaves it
    talk._read = None
    assert "".join(talk.words(asked, length=8)) == expected.text


def test_a_chat_needs_a_conversation(run, home, tmp_path):  # noqa: F811
    generator = Generator(run)
    generator.conversation = None
    with pytest.raises(UserError, match="knows no conversations, so that it cannot chat"):
        Chat(generator)
