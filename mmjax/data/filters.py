"""Limits by which examples of a collection are left out."""

from mmjax.tree import part


@part
class Filters:
    """Limits; examples outside them are left out and counted. None: no limit."""

    shortest: float | None = None  # seconds of speech
    longest: float | None = None
    # The most characters of a transcript per second: nobody speaks faster. Short transcripts may have 10 more, up to twice as many.
    characters_per_second: float | None = 40.0
    tokens_per_frame: float | None = None  # tokens of a transcript per CTC frame
    frame: float = 0.04  # seconds per CTC frame
    largest_share_dropped: float = 0.05  # dropping a larger share is an error


USUAL = Filters()
