"""Generator: writes replies with the language model of a run, in batches, token by token, or with beams."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from mmjax.data.capacity import bucket
from mmjax.data.conversation import Conversation
from mmjax.data.inputs import Use
from mmjax.data.layout import Rows
from mmjax.decode import GREEDY, Sampling, ranked
from mmjax.errors import UserError
from mmjax.generation import programs
from mmjax.generation.reply import Reply, Writing
from mmjax.stream import Batch
from mmjax.train.build import build_layout, labels_of
from mmjax.train.report import sample_rate

STEPS = 64  # the room for tokens is a multiple of this, so that few programs are compiled


class Generator:
    """Writes texts with a run's task that writes (`CausalLM`).

    If the run was not trained on conversations, such as an import, the chat template of its tokenizer writes them. Without a
    template, the run continues plain texts.

    Args:
      run: a `mmjax.run.Run`.
      task: name of the task; None: the only one that writes texts token by token.
      template_options: further ones for the chat template, such as {"enable_thinking": False}.

    Raises:
      UserError: the run has no such task, or several; or the template does not read such options.
    """

    def __init__(self, run: Any, task: str | None = None, template_options: Mapping[str, Any] = MappingProxyType({})):
        found = [name for name, one in run.config.model.tasks.items() if one.generates]
        if task is None and len(found) != 1:
            names = f"several language models; choose one of {', '.join(found)}" if found else "no language model"
            raise UserError(f"{run.directory} has {names}")
        self.run, self.name = run, task or found[0]
        self.task = run.config.model.tasks[self.name]
        data, tokenizer, reads = run.config.data, run.tokenizer, self.task.reads
        if template_options:
            tokenizer = tokenizer.with_template_options(template_options)
        written = run.fields.inputs[reads]
        if not written.media and tokenizer.chat.source is not None:
            written = Conversation()
        self.conversation = written if written.media else None  # only a conversation has media
        data = dataclasses.replace(data, inputs={**data.inputs, reads: written})
        config = dataclasses.replace(run.config, data=data)
        self._inputs = data.fields(labels_of(config)).inputs
        self.layout = build_layout(config, tokenizer)
        self.ends = self.task.ends or (written.ends(tokenizer) if self.conversation else ())
        self._begin = jax.jit(partial(programs.begin, run.model, self.name, reads), static_argnames="length")
        self.advance = jax.jit(
            partial(programs.advance, run.model, self.name), static_argnames="sampling", donate_argnames="state"
        )
        self._best = jax.jit(partial(programs.best, run.model, self.name, self.ends), static_argnames=("beams", "room"))
        self._score = jax.jit(partial(programs.score, run.model, self.name))

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

        Raises:
          UserError: a prompt cannot be used, or an argument has no effect beside the others.
        """
        self.check_sampling(sampling, stop, beams)
        if beams > 1:
            return [self.best(prompt, beams, length)[0] for prompt in prompts]
        found: list[Reply] = []
        for first in range(0, len(prompts), rows):
            found += self._together(prompts[first : first + rows], sampling, length, stop, rows)
        return found

    def words(
        self, prompt: Any, sampling: Sampling = GREEDY, length: int = 256, stop: Sequence[str] = ()
    ) -> Iterator[str]:
        """Yields what each token of a reply adds to its text, perhaps nothing; the arguments are those of `replies`."""
        writing = Writing(self.run.tokenizer, self.ends, stop, length)
        tokens = self._tokens([prompt], sampling, length, 1, lambda: [writing.ended is None])
        return writing.words(token for (token,) in tokens)

    def best(self, prompt: Any, beams: int, length: int = 256, penalty: float = 1.0) -> list[Reply]:
        """The replies that a beam search finds, the best first; each with its score.

        Args:
          beams: texts that are kept; 1 is greedy.
          length: the largest number of tokens of a reply.
          penalty: scores are divided by length ** penalty, since every token makes a text less probable.
        """
        params, cut = self.run.device_params, self.cut(self.given(prompt))
        self.check_length([cut], length)
        state = self._begin(params, self.packed([cut], 1), length=0)
        found = self._best(params, state, beams=beams, room=_room(length), most=length, penalty=penalty)
        replies = []
        for ids, score in zip(*(np.asarray(x[0]).tolist() for x in (found.ids, ranked(found, penalty))), strict=True):
            writing = Writing(self.run.tokenizer, self.ends, (), length)
            for token in (token for token in ids if token >= 0):
                writing.add(token)
            replies.append(writing.reply()._replace(score=score))
        return [reply for reply in replies if np.isfinite(reply.score)]

    def check(self, prompt: Any, length: int = 1) -> None:
        """Checks a prompt for a reply of up to `length` tokens, and reads its media; raises UserError."""
        self.check_length([self.cut(self.given(prompt))], length)

    @staticmethod
    def check_sampling(sampling: Sampling, stop: Sequence[str] = (), beams: int = 1) -> None:
        """Checks that each of these arguments of `replies` has an effect; raises UserError."""
        sampling.check()
        given = {
            "temperature": sampling.temperature > 0,
            "repetition_penalty": sampling.repetition_penalty != 1,
            "stop": stop,
        }
        if beams > 1 and (idle := next((name for name, used in given.items() if used), None)):
            raise UserError(
                f"beams={beams} searches for the most probable reply, without {idle}; leave {idle} or beams out"
            )

    def likelihoods(self, prompt: Any, answers: Sequence[str]) -> list[float]:
        """The logarithm of the probability of each answer, its end token included, as the reply to a prompt.

        The largest one is the model's choice among the answers.

        Raises:
          UserError: the run knows no conversations.
        """
        if self.conversation is None:
            raise UserError(f"{self.run.directory} knows no conversations, so that it cannot choose a reply")
        asked = self.given(prompt)
        cuts = []
        for answer in answers:
            messages = [*json.loads(asked[self.task.reads]), {"role": "assistant", "content": answer}]
            cuts.append(self.cut({**asked, self.task.reads: json.dumps(messages)}))
        return np.asarray(self._score(self.run.device_params, self.packed(cuts, len(cuts)))).tolist()

    def _together(
        self, prompts: Sequence[Any], sampling: Sampling, length: int, stop: Sequence[str], rows: int
    ) -> list[Reply]:
        writing = [Writing(self.run.tokenizer, self.ends, stop, length) for _ in prompts]
        for tokens in self._tokens(prompts, sampling, length, rows, lambda: [one.ended is None for one in writing]):
            for one, token in zip(writing, tokens, strict=False):
                if one.ended is None:
                    one.add(token)
        return [one.reply() for one in writing]

    def _tokens(
        self, prompts: Sequence[Any], sampling: Sampling, length: int, rows: int, going: Callable[[], list[bool]]
    ) -> Iterator[list[int]]:
        """Yields the next token of each prompt, until none is going on."""
        return self.tokens_of([self.cut(self.given(prompt)) for prompt in prompts], length, going, sampling, rows)

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
        self.check_length(cuts, length)
        params = self.run.device_params
        state = self._begin(params, self.packed(cuts, rows), length=_room(length))
        while any(running := going()):
            running = np.array(running + [False] * (rows - len(running)))
            ids, state = self.advance(params, state=state, going=running, sampling=sampling)
            yield np.asarray(ids).tolist()

    def check_length(self, cuts: Sequence[Mapping[str, Any]], length: int) -> None:
        """Checks that the decoder has positions for the prompts with replies of `length` tokens; raises UserError.

        The last token of a reply needs none: nothing is written after it.
        """
        most, longest = self.task.decoder.positions.length, max(len(parts[self.task.reads][0]) for parts in cuts)
        if most is not None and longest + length - 1 > most:
            raise UserError(
                f"your prompt has {longest} tokens, and a reply may have {length}, but this model reads at most {most}, so that "
                f"this reply may have {max(most - longest + 1, 0)}; shorten the prompt, or ask for fewer tokens"
            )

    def packed(self, cuts: Sequence[Mapping[str, Any]], rows: int) -> Batch:
        """Prompts, by stream, in a batch, one in each row."""
        names = {name for parts in cuts for name in parts}
        rooms = {name: max(len(parts[name][0]) for parts in cuts if name in parts) for name in names}
        rooms = {name: bucket(room, self.layout.streams[name]) for name, room in rooms.items()}
        packed = Rows(dataclasses.replace(self.layout, rows={**rooms, "examples": 1}), rows)
        for row, parts in enumerate(cuts):
            packed.write(row, {**parts, "examples": (np.array([row]), np.zeros(1))}, "your prompt")
        return packed.batch

    def given(self, prompt: Any) -> dict[str, Any]:
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

    def cut(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """A prompt as it stands in a row, by stream."""
        return {name: self.layout.streams[name].cut(value, name, "your prompt") for name, value in given.items()}


def _room(length: int) -> int:
    """The room for a reply of `length` tokens."""
    return -(-length // STEPS) * STEPS
