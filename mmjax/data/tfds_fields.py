"""The fields of `Record` in well-known TFDS data sets, as paths of features; to add a data set, add a line.

The path "captions/text/0" means the first element of a list; "captions/text/*", all of them, as the alternatives of a text.
"""

_HEARD = {"speech": "audio", "answer": "label"}
_SEEN = {"image": "image", "answer": "label"}

READY: dict[str, dict[str, str]] = {
    # Speech and its transcript.
    "common_voice": {"speech": "voice", "transcript": "sentence"},
    "librispeech": {"speech": "speech", "transcript": "text", "name": "id"},
    "libritts": {"speech": "speech", "transcript": "text_normalized", "name": "id"},
    "ljspeech": {"speech": "speech", "transcript": "text_normalized", "name": "id"},
    "tedlium": {"speech": "speech", "transcript": "text", "name": "id"},
    "vctk": {"speech": "speech", "transcript": "text", "name": "id"},
    "xtreme_s": {"speech": "audio", "transcript": "transcription", "language": "language"},  # FLEURS
    # Sounds and their class: a word, an emotion, an accent, a genre.
    "accentdb": _HEARD,
    "crema_d": _HEARD,
    "gtzan": _HEARD,
    "nsynth": {"speech": "audio", "answer": "instrument/family", "name": "id"},
    "savee": _HEARD,
    "speech_commands": _HEARD,
    "spoken_digit": _HEARD,
    # Pictures.
    "caltech101": _SEEN,
    "cifar10": _SEEN,
    "cifar100": _SEEN,
    "coco_captions": {"image": "image", "target": "captions/text/0", "name": "image/filename"},
    "fashion_mnist": _SEEN,
    "food101": _SEEN,
    "imagenet2012": {**_SEEN, "name": "file_name"},
    "mnist": _SEEN,
    "oxford_flowers102": {**_SEEN, "name": "file_name"},
    "oxford_iiit_pet": {**_SEEN, "name": "file_name"},
    "stanford_dogs": {**_SEEN, "name": "image/filename"},
    "svhn_cropped": _SEEN,
    # Texts and their class.
    "ag_news_subset": {"text": "description", "answer": "label"},
    "glue/sst2": {"text": "sentence", "answer": "label"},
    "imdb_reviews": {"text": "text", "answer": "label"},
    "yelp_polarity_reviews": {"text": "text", "answer": "label"},
    # Texts and target texts: a summary, a translation.
    "cnn_dailymail": {"text": "article", "target": "highlights", "name": "id"},
    "gigaword": {"text": "document", "target": "summary"},
    "samsum": {"text": "dialogue", "target": "summary", "name": "id"},
    "wmt14_translate/de-en": {"text": "de", "target": "en"},
    "wmt14_translate/fr-en": {"text": "fr", "target": "en"},
    "xsum": {"text": "document", "target": "summary"},
    # Texts alone.
    "c4": {"text": "text", "name": "url"},
    "lm1b": {"text": "text"},
    "wiki40b": {"text": "text", "name": "wikidata_id"},
    "wikipedia": {"text": "text", "name": "title"},
}


def ready(name: str) -> dict[str, str] | None:
    """The fields of a data set ("librispeech", "glue/sst2:2.0.0"); None if it is not listed."""
    plain, _, config = name.partition(":")[0].partition("/")
    return READY.get(f"{plain}/{config}", READY.get(plain))
