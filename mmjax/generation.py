"""Writing with a language model: replies to conversations, in batches or token by token."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import progress
from mmjax.data.capacity import bucket
from mmjax.data.chat_formats import columns_in, read_prompt
from mmjax.data.conversation import Conversation
from mmjax.data.inputs import Use
from mmjax.data.layout import Rows
from mmjax.decode import GREEDY, Beams, Sampling, begin_beams, choose, extend_beams, ranked
from mmjax.errors import UserError
from mmjax.files import json_line, local
from mmjax.losses import chunked_cross_entropy
from mmjax.stream import Batch, Factors, Stream
from mmjax.train.build import build_layout, labels_of
from mmjax.train.report import sample_rate

STEPS = 64  # the room for tokens is a multiple of this, so that few programs are compiled


class Reply(NamedTuple):
    """What a language model wrote.

    Attributes:
      text: without the token or the words that end it.
      ids: of its tokens, the end token included.
      ended: by its end token ("end"), by words that end it ("stop"), or because it had no more room ("length").
      score: of a beam search: the logarithm of its probability, divided by a power of its length.
    """

    text: str
    ids: tuple[int, ...]
    ended: Literal["end", "stop", "length"]
    score: float | None = None


class State(NamedTuple):
    """The texts that are being written, one in each row; a plain pytree on the device.

    Attributes:
      logits: [R, V] of the next token of each.
      kept: what the model keeps (`Multimodal.step`).
      seen: [R, V] bool, the tokens that each text has.
      positions: [R] of the last token of each; number: of tokens that were written.
    """

    logits: jax.Array
    kept: Any
    seen: jax.Array
    positions: jax.Array
    number: jax.Array


class Generator:
    """Writes texts with a run's task that writes (`CausalLM`).

    A run that was not trained on conversations, such as an import, is given them with the chat template of its tokenizer, if
    there is one; otherwise it continues plain texts.

    Args:
      run: a `mmjax.run.Run`.
      task: name of the task; None: the only one that writes texts token by token.

    Raises:
      UserError: the run has no such task, or several.
    """

    def __init__(self, run: Any, task: str | None = None):
        found = [name for name, one in run.config.model.tasks.items() if hasattr(one, "ends")]
        if task is None and len(found) != 1:
            names = f"several language models; choose one of {', '.join(found)}" if found else "no language model"
            raise UserError(f"{run.directory} has {names}")
        self.run, self.name = run, task or found[0]
        self.task = run.config.model.tasks[self.name]
        data, tokenizer, reads = run.config.data, run.tokenizer, self.task.reads
        written = run.fields.inputs[reads]
        if not isinstance(written, Conversation) and tokenizer.chat.source is not None:
            written = Conversation()
        self.conversation = written if isinstance(written, Conversation) else None
        data = dataclasses.replace(data, inputs={**data.inputs, reads: written})
        config = dataclasses.replace(run.config, data=data)
        self._inputs = data.fields(labels_of(config)).inputs
        self._layout = build_layout(config, tokenizer)
        self._ends = self.task.ends or (written.ends(tokenizer) if self.conversation else ())
        self._begin = jax.jit(partial(_begin, run.model, self.name, reads), static_argnames="length")
        self._advance = jax.jit(
            partial(_advance, run.model, self.name), static_argnames="sampling", donate_argnames="state"
        )
        self._extend = jax.jit(partial(_extend, run.model, self.name, self._ends), donate_argnums=(3,))
        self._score = jax.jit(partial(_score, run.model, self.name))

    def replies(
        self,
        prompts: Sequence[Any],
        sampling: Sampling = GREEDY,
        length: int = 256,
        stop: Sequence[str] = (),
        rows: int = 8,
        beams: int = 1,
    ) -> list[Reply]:
        """Writes a reply to each prompt. The result does not depend on `rows`.

        Args:
          prompts: lists of messages that end with the user's, such as [{"role": "user", "content": "Hello!"}], with media as
            in data (docs/data.md); a plain text is one message, or the text to continue if the run knows no conversations.
          length: the largest number of tokens of a reply.
          stop: words that end a reply, and are not part of it.
          rows: number of prompts that are computed together.
          beams: above 1: the most probable reply that a beam search finds, one prompt after the other (`best`).
        """
        if beams > 1:
            if stop or sampling.temperature > 0:
                raise UserError("beams give the most probable reply: leave out temperature and stop words")
            return [self.best(prompt, beams, length)[0] for prompt in prompts]
        found: list[Reply] = []
        for first in range(0, len(prompts), rows):
            found += self._together(prompts[first : first + rows], sampling, length, stop, rows)
        return found

    def words(
        self, prompt: Any, sampling: Sampling = GREEDY, length: int = 256, stop: Sequence[str] = ()
    ) -> Iterator[str]:
        """Yields what each token of a reply adds to its text, perhaps nothing; the arguments are those of `replies`."""
        shown, writing = 0, _Writing(self.run.tokenizer, self._ends, stop, length)
        for (token,) in self._tokens([prompt], sampling, length, 1, lambda: [writing.ended is None]):
            writing.add(token)
            yield writing.safe[shown:]
            shown = max(shown, len(writing.safe))

    def best(self, prompt: Any, beams: int, length: int = 256, penalty: float = 1.0) -> list[Reply]:
        """The replies that a beam search finds, the best first; each with its score.

        Args:
          beams: texts that are kept; 1 is greedy.
          length: the largest number of tokens of a reply.
          penalty: scores are divided by length ** penalty, since every token makes a text less probable.
        """
        params = self.run.device_params
        state = self._begin(
            params, self._packed([self._cut(self._given(prompt))], 1), length=-(-length // STEPS) * STEPS
        )
        found, logits, kept, position = begin_beams(beams, length), state.logits, state.kept, state.positions[0]
        order = jnp.zeros(beams, jnp.int32)
        logits, kept = logits[order], self.run.model.tasks[self.name].rows(kept, order)
        while int(found.number) < length and not bool(found.done.all()):
            found, logits, kept = self._extend(params, found, logits, kept, position)
        scores = np.asarray(ranked(found, penalty))
        replies = []
        for row in np.argsort(-scores, kind="stable").tolist():
            writing = _Writing(self.run.tokenizer, self._ends, (), length)
            for token in (token for token in np.asarray(found.ids[row]).tolist() if token >= 0):
                writing.add(token)
            replies.append(writing.reply()._replace(score=float(scores[row])))
        return [reply for reply in replies if np.isfinite(reply.score)]

    def check(self, prompt: Any) -> None:
        """Checks a prompt and reads its media; raises UserError."""
        self._cut(self._given(prompt))

    def likelihoods(self, prompt: Any, answers: Sequence[str]) -> list[float]:
        """The logarithm of the probability of each answer, its end token included, as the reply to a prompt.

        The largest one is the model's choice among the answers.

        Raises:
          UserError: the run knows no conversations.
        """
        if self.conversation is None:
            raise UserError(f"{self.run.directory} knows no conversations, so that it cannot choose a reply")
        asked = self._given(prompt)
        cuts = []
        for answer in answers:
            messages = [*json.loads(asked[self.task.reads]), {"role": "assistant", "content": answer}]
            cuts.append(self._cut({**asked, self.task.reads: json.dumps(messages)}))
        return np.asarray(self._score(self.run.device_params, self._packed(cuts, len(cuts)))).tolist()

    def _together(
        self, prompts: Sequence[Any], sampling: Sampling, length: int, stop: Sequence[str], rows: int
    ) -> list[Reply]:
        writing = [_Writing(self.run.tokenizer, self._ends, stop, length) for _ in prompts]
        for tokens in self._tokens(prompts, sampling, length, rows, lambda: [one.ended is None for one in writing]):
            for one, token in zip(writing, tokens, strict=False):
                if one.ended is None:
                    one.add(token)
        return [one.reply() for one in writing]

    def _tokens(
        self, prompts: Sequence[Any], sampling: Sampling, length: int, rows: int, going: Callable[[], list[bool]]
    ) -> Iterator[list[int]]:
        """Yields the next token of each prompt, until none is going on."""
        return self.tokens_of([self._cut(self._given(prompt)) for prompt in prompts], length, going, sampling, rows)

    def tokens_of(
        self,
        cuts: Sequence[Mapping[str, Any]],
        length: int,
        going: Callable[[], list[bool]],
        sampling: Sampling = GREEDY,
        rows: int = 1,
    ) -> Iterator[list[int]]:
        """Yields the next token of each prompt, until none is going on.

        Args:
          cuts: prompts by stream, as they stand in a row (`mmjax.data.streams.Cut`).
          length: the largest number of tokens that are asked for.
          going: which prompts go on, asked before each token.
        """
        sampling.check()
        params, room = self.run.device_params, -(-length // STEPS) * STEPS
        state = self._begin(params, self._packed(cuts, rows), length=room)
        while any(running := going()):
            running = np.array(running + [False] * (rows - len(running)))
            ids, state = self._advance(params, state=state, going=running, sampling=sampling)
            yield np.asarray(ids).tolist()

    def _packed(self, cuts: Sequence[Mapping[str, Any]], rows: int) -> Batch:
        """Prompts, by stream, in a batch, one in each row."""
        names = {name for parts in cuts for name in parts}
        rooms = {name: max(len(parts[name][0]) for parts in cuts if name in parts) for name in names}
        rooms = {name: bucket(room, self._layout.streams[name]) for name, room in rooms.items()}
        packed = Rows(dataclasses.replace(self._layout, rows={**rooms, "examples": 1}), rows)
        for row, parts in enumerate(cuts):
            packed.write(row, {**parts, "examples": (np.array([row]), np.zeros(1))}, "your prompt")
        return packed.batch

    def _given(self, prompt: Any) -> dict[str, Any]:
        """A prompt in the form of an `Example`'s inputs."""
        reads, use = self.task.reads, Use(sample_rate(self.run.config), self.run.config.data.rescale, apart=True)
        if self.conversation is None:
            if not isinstance(prompt, str):
                raise UserError(
                    f"{self.run.directory} knows no conversations, because its tokenizer has no chat template; put the model's "
                    "tokenizer_config.json or chat_template.jinja into this directory"
                )
            found = {reads: self._inputs[reads].from_user(prompt, reads, use)}
        else:
            found = self.conversation.of_user(reads, {reads: prompt}, use, self._inputs)
        for name in found.keys() - self.run.config.model.encoders.keys():
            raise UserError(f"this run's model has no encoder for {name}")
        return found

    def _cut(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """A prompt as it stands in a row, by stream."""
        return {name: self._layout.streams[name].cut(value, name, "your prompt") for name, value in given.items()}


def generate(
    generator: Generator,
    source: str | Path,
    out: str | Path,
    sampling: Sampling = GREEDY,
    length: int = 256,
    stop: Sequence[str] = (),
    rows: int = 8,
    beams: int = 1,
) -> int:
    """Writes a reply to each line of a JSONL file; returns their number.

    A line is a conversation as in data (docs/data.md), or {"text": a text}. If it ends with a reply, the reply is its
    reference. A line of the result has the "name" of the prompt or its number, the "reply", how it "ended", and the
    "reference", if any. If the result has lines already, their prompts are left out: an interrupted call can be repeated.

    Args:
      out: the result, a JSONL file.

    Raises:
      UserError: a file cannot be read or written, or the result belongs to another file.
    """
    source, out = local(source, "the prompts"), local(out, "--out")
    prompts = list(_prompts(source))
    names = [name for name, *_ in prompts]
    done = [json.loads(line)["name"] for line in _lines(out)] if out.is_file() else []
    if done != names[: len(done)]:
        raise UserError(f"{out} holds replies to other prompts than {source}; name another file")
    with progress.bar("writing replies", len(names), "replies") as bar, open(out, "a", encoding="utf-8") as file:
        bar.advance(len(done))
        for first in range(len(done), len(prompts), rows):
            part = prompts[first : first + rows]
            replies = generator.replies([prompt for _, prompt, _ in part], sampling, length, stop, rows, beams)
            for (name, _, reference), reply in zip(part, replies, strict=True):
                line = {"name": name, "reply": reply.text, "ended": reply.ended}
                file.write(json_line(line | ({} if reference is None else {"reference": reference})) + "\n")
            file.flush()
            bar.advance(len(part))
    return len(prompts)


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def _prompts(path: Path) -> Iterator[tuple[str, Any, str | None]]:
    """The name, the messages (or the text), and the reference (or None) of each line of a file."""
    for number, line in enumerate(_lines(path), 1):
        name = f"line {number} of {path}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{name} is no JSON: {error}") from None
        if isinstance(row, str) or (isinstance(row, dict) and isinstance(row.get("text"), str)):
            yield str(number), row if isinstance(row, str) else row["text"], None
            continue
        if not isinstance(row, dict) or not (columns := columns_in(row, None)):
            raise UserError(f"{name} has neither messages nor a text")
        messages, reference = read_prompt(row, columns, path.parent, name)
        yield str(row.get("name", row.get("id", number))), messages, reference


class _Writing:
    """A reply that is being written."""

    def __init__(self, tokenizer: Any, ends: Sequence[int], stop: Sequence[str], length: int):
        self._tokenizer, self._ends, self._stop, self._length = tokenizer, ends, stop, length
        self._ids: list[int] = []
        self.text, self.ended = "", None

    def add(self, token: int) -> None:
        """Adds the next token."""
        self._ids.append(token)
        if token in self._ends:
            self.ended = "end"
            return
        self.text = self._tokenizer.decode(self._ids)
        places = [place for words in self._stop if (place := self.text.find(words)) >= 0]
        if places:
            self.text, self.ended = self.text[: min(places)], "stop"
        elif len(self._ids) == self._length:
            self.ended = "length"

    @property
    def safe(self) -> str:
        """The text that further tokens do not change: without an incomplete character, or a part of words that end it."""
        text = self.text.rstrip("\ufffd")  # a character of which a later token has the rest
        if self.ended is None and self._stop:
            longest = max(map(len, self._stop)) - 1
            partial_ = [n for n in range(1, longest + 1) if any(words.startswith(text[-n:]) for words in self._stop)]
            text = text[: len(text) - max(partial_, default=0)]
        return text

    def reply(self) -> Reply:
        return Reply(self.safe, tuple(self._ids), self.ended)


def _begin(model: Any, task: str, reads: str, params: Any, batch: Batch, length: int) -> State:
    """The state after the prompts were read; `length`: the largest number of tokens that may be written."""
    logits, kept = model.apply({"params": params}, batch, task, length, method="begin")
    text = batch[reads]
    ids = text.features if text.features.ndim == 2 else text.features[..., 0]
    rows = jnp.arange(len(ids))
    seen = jnp.zeros((len(ids), logits.features.shape[-1] + 1), bool)
    seen = seen.at[rows[:, None], jnp.where(text.segments > 0, ids, -1)].set(True)[:, :-1]
    return State(logits.features[:, 0], kept, seen, logits.positions[:, 0], jnp.zeros((), jnp.int32))


def _advance(
    model: Any, task: str, params: Any, state: State, going: jax.Array, sampling: Sampling
) -> tuple[jax.Array, State]:
    """The next token of each text [R], and the state after it; `going` [R]: the texts that have not ended."""
    ids = choose(state.logits, state.seen, state.number, sampling)
    positions = state.positions + 1
    tokens = Stream(ids[:, None], going[:, None].astype(jnp.int32), positions[:, None])
    logits, kept = model.apply({"params": params}, task, tokens, state.kept, method="step")
    seen = state.seen.at[jnp.arange(len(ids)), ids].set(True)
    return ids, State(logits.features[:, 0], kept, seen, positions, state.number + 1)


def _extend(
    model: Any, task: str, ends: tuple[int, ...], params: Any, beams: Beams, logits: jax.Array, kept: Any, position: Any
) -> tuple[Beams, jax.Array, Any]:
    """The beams after one more token, the logits [K, V] after it, and what the model keeps.

    Args:
      position: of the last token of the prompt.
    """
    beams, rows, tokens = extend_beams(beams, logits, ends)
    kept = model.tasks[task].rows(kept, rows)
    places = jnp.broadcast_to(position + beams.number, (len(tokens), 1))
    stream = Stream(tokens[:, None], (~beams.done).astype(jnp.int32)[:, None], places)
    logits, kept = model.apply({"params": params}, task, stream, kept, method="step")
    return beams, logits.features[:, 0], kept


def _score(model: Any, task: str, params: Any, batch: Batch) -> jax.Array:
    """[R] the logarithm of the probability of the last reply in each row."""
    said = model.apply({"params": params}, batch)[task]
    reply = model.tasks[task].target(batch)
    last = jnp.pad(reply.mask, ((0, 0), (0, 1)))[:, 1:]  # the token before a label predicts it
    logits, labels = said.prediction.features, jnp.where(last, said.labels.features, 0)
    if isinstance(logits, Factors):
        nll = chunked_cross_entropy(logits.features, logits.kernel, labels, model.tasks[task].chunk)
    else:
        nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)[..., 0]
    return -jnp.where(last, nll, 0.0).sum(axis=1)
