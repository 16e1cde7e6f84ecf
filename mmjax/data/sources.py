"""The kinds of source, one line each.

A source of a split has `__len__`, `__getitem__(index) -> Example`, `sizes` (samples of speech, tokens of text and
vectors of other streams per example, as integer arrays by name), `tokenizer` (None: nothing is written) and `answers`.

A source of one's own stands in any Python file: docs/fourth-modality.md.
"""

from mmjax.data.spoken_easy_vqa import SpokenEasyVQA

__all__ = ["SpokenEasyVQA"]
