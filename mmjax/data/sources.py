"""The kinds of source, one line each.

A source of a split has `__len__`, `__getitem__(index) -> Example`, `sizes` (samples of speech and tokens of text
per example, as integer arrays), `tokenizer` and `answers`.
"""

from mmjax.data.spoken_easy_vqa import SpokenEasyVQA

__all__ = ["SpokenEasyVQA"]
