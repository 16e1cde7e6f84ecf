"""Chat templates: Jinja templates that write a conversation as one text, as Hugging Face's tokenizers hold them."""

import dataclasses
import datetime
import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.errors import UserError

CONFIG, FILE = "tokenizer_config.json", "chat_template.jinja"  # beside a tokenizer
OPTIONS = "chat_template_options"  # the key of `ChatTemplate.options` in a run's `CONFIG`
GUARD, MEDIUM, OPEN, CLOSE = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"  # Unicode's noncharacters: no text holds them
DAY = datetime.datetime(2024, 7, 26)  # training data does not depend on the day; this is the date in Llama 3's template

TEMPLATES = {  # by name
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
        "+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}{% set ns = namespace(system='') %}{% for message in messages %}{% if message['role'] == 'system' %}"
        "{% set ns.system = message['content'] | trim + '\n\n' %}{% else %}{{ '<start_of_turn>' + "
        "('model' if message['role'] == 'assistant' else 'user') + '\n' + ns.system + message['content'] | trim + "
        "'<end_of_turn>\n' }}{% set ns.system = '' %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "plain": (  # for tokenizers without special tokens for turns
        "{% for message in messages %}{{ message['role'] + ':\n' + message['content'] + "
        "(eos_token if message['role'] == 'assistant' else '') + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
    ),
}


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A chat template, with the special tokens of its tokenizer.

    Attributes:
      source: the Jinja template; None: there is none.
      tokens: names and texts of special tokens: (("eos_token", "</s>"),).
      options: further variables of the template: (("enable_thinking", False),).
    """

    source: str | None = None
    tokens: tuple[tuple[str, str], ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def beside(cls, tokenizer: str | os.PathLike) -> "ChatTemplate":
        """The template of a tokenizer, from the files `CONFIG` and `FILE` in its folder.

        Raises:
          UserError: a file cannot be read.
        """
        config, file = Path(tokenizer).with_name(CONFIG), Path(tokenizer).with_name(FILE)
        try:
            about = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
            source = file.read_text(encoding="utf-8") if file.is_file() else about.get("chat_template")
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the chat template beside {tokenizer}: {error}") from None
        if isinstance(source, list):  # several templates with names
            source = {one["name"]: one["template"] for one in source}.get("default")
        found = {}
        for name, value in about.items():
            value = value.get("content") if isinstance(value, dict) else value
            if name.endswith("_token") and isinstance(value, str):
                found[name] = value
        return cls(source, tuple(sorted(found.items()))).given(about.get(OPTIONS) or {})

    def replaced(self, template: str | None) -> "ChatTemplate":
        """With the template of this name (`TEMPLATES`), or in this file; None: unchanged.

        Raises:
          UserError: there is neither.
        """
        if template is None or template in TEMPLATES:
            return dataclasses.replace(self, source=TEMPLATES.get(template, self.source))
        try:
            return dataclasses.replace(self, source=Path(template).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            names = ", ".join(TEMPLATES)
            raise UserError(
                f"data.tokenizer.chat_template is {template!r}, neither a file nor one of {names}"
            ) from None

    def given(self, options: Mapping[str, Any]) -> "ChatTemplate":
        """With further options for the template, such as {"enable_thinking": False}.

        Raises:
          UserError: the template does not know an option.
        """
        for name in options:
            if self.source is None or not re.search(rf"\b{re.escape(name)}\b", self.source):
                raise UserError(f"the chat template does not read the option {name!r}; look into {CONFIG} or {FILE}")
        return dataclasses.replace(self, options=tuple(sorted((dict(self.options) | dict(options)).items())))

    @property
    def serialised(self) -> bytes | None:
        """The content of `CONFIG`; None if there is nothing."""
        about = dict(self.tokens) | ({} if self.source is None else {"chat_template": self.source})
        about |= {OPTIONS: dict(self.options)} if self.options else {}
        return json.dumps(about, indent=2).encode() if about else None

    def render(self, messages: Sequence[Mapping[str, str]], prompt: bool = False, day: datetime.datetime = DAY) -> str:
        """The text of a conversation; what stands in {% generation %} blocks is enclosed in `OPEN` and `CLOSE`.

        Args:
          messages: {"role", "content"} of each.
          prompt: a reply of the assistant follows.

        Raises:
          UserError: there is no template, or it refuses the conversation.
        """
        if self.source is None:
            raise UserError(
                f"the tokenizer has no chat template ({CONFIG} or {FILE} beside it); set data.tokenizer.chat_template to a "
                f"file or one of {', '.join(TEMPLATES)}"
            )
        # What transformers passes: `transformers.utils.chat_template_utils`.
        given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": prompt}
        try:
            return _compiled(self.source).render(**given, strftime_now=day.strftime, **dict(self.tokens + self.options))
        except Exception as error:  # a template is a program of others
            raise UserError(f"the chat template refuses the conversation: {error}") from None


NO_TEMPLATE = ChatTemplate()


@functools.lru_cache(16)
def _compiled(source: str) -> Any:
    """The template in the environment of transformers."""
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """{% generation %} blocks, which hold what the assistant writes."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_enclosed"), [], [], body).set_lineno(line)

        def _enclosed(self, caller: Any) -> str:
            return OPEN + caller() + CLOSE

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise UserError(f"the chat template is no Jinja template: {error}") from None


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
