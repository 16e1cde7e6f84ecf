"""Writing with a language model: replies to conversations, in batches or token by token."""

from mmjax.generation.chat import Chat
from mmjax.generation.files import generate
from mmjax.generation.generator import Generator
from mmjax.generation.reply import Reply
