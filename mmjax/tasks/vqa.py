"""The accuracy of answers to questions about pictures, as the official evaluation of VQA computes it."""

import re
from collections.abc import Mapping, Sequence

ARTICLES = ("a", "an", "the")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {word: str(number) for number, word in enumerate(NUMBERS)} | {"none": "0"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # all other signs are parts of words

# The words before each ending, of the contractions that may lack an apostrophe.
ENDINGS = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
    "n't've": "could had might should would",
    "'ve": "could might must not should they we what where who would you",
    "'d": "he how it somebody someone something there they where who you",
    "'d've": "he it she somebody someone something there they we who you y'all",
    "'ll": "how it somebody someone something they what who why y'all you",
    "'s": "he how somebody someone that there what when where who why",
    "'re": "there they what why you",
}
OTHERS = ("ma'am", "o'clock", "'twas", "'ow's'at", "y'all")


def vqa_accuracy(answers: Sequence[str], hypothesis: str) -> float:
    """The accuracy of an answer to a question that several people, usually ten, have answered (Antol et al. 2015, arXiv:1505.00468).

    An answer that three people gave is right. An answer of two people counts 2/3, and an answer of one person counts 1/3. The
    accuracy is the mean over all groups that leave out one person. As in the official evaluation (https://visualqa.org/evaluation.html, `vqaEval.py`), texts are
    compared in their `normalised` forms, or as they are if all people gave the same answer. With a single answer, the
    normalised forms are compared, and the accuracy is 1 or 0.
    """
    said, *right = (re.sub(r"[\n\t]", " ", text).strip() for text in (hypothesis, *answers))
    if len(right) == 1 or len(set(right)) > 1:
        said, *right = map(normalised, (said, *right))
    if len(right) == 1:
        return float(right[0] == said)
    given = right.count(said)
    return sum(min((given - (one == said)) / 3, 1.0) for one in right) / len(right)


def normalised(text: str) -> str:
    """An answer in lower case without articles, with numbers to ten as digits, and with the apostrophes of contractions.

    A sign of `PUNCTUATION` is deleted if it stands beside a space somewhere, and otherwise replaced by a space; all are
    deleted from a text with a comma within a number. A full stop before a digit stays, as in 1.5.
    """
    number, found = re.search(r"\d,\d", text), text
    for sign in PUNCTUATION:
        beside = f"{sign} " in text or f" {sign}" in text
        found = found.replace(sign, "" if beside or number else " ")
    words = [DIGITS.get(word, word) for word in re.sub(r"\.(?!\d)", "", found).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _contractions() -> Mapping[str, str]:
    """A spelling without one of its apostrophes -> the contraction."""
    every = [f"{word}{ending}" for ending, words in ENDINGS.items() for word in words.split()]
    return {
        one[:place] + one[place + 1 :]: one
        for one in (*every, *OTHERS)
        for place, character in enumerate(one)
        if character == "'"
    }


CONTRACTIONS = _contractions()
