"""Transcription of long recordings, in parts, and of speech while it is spoken."""

from mmjax.transcription.live import LiveText, Streaming
from mmjax.transcription.long import Segment, Transcriber, seconds_of, task_for
