"""Lengths of recordings as LibriSpeech has them, for benchmarks without its data."""

import numpy as np

# Durations in seconds of LibriSpeech's utterances at these percentiles, by part, as lhotse describes them in icefall's
# recipe (k2-fsa/icefall, egs/librispeech/ASR/local/display_manifest_statistics.py). The training parts are listed at
# speeds of 0.9, 1.0 and 1.1, which leaves their mean at 12.3 s.
PERCENTILES = (0, 0.1, 0.5, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 100)
LIBRISPEECH = {  # utterances of a part: its percentiles
    85_617: (1.3, 1.9, 2.2, 2.5, 4.2, 6.4, 11.4, 13.8, 15.3, 16.7, 17.3, 18.1, 18.4, 18.8, 27.2),
    312_042: (1.0, 1.8, 2.2, 2.5, 4.2, 6.2, 11.2, 13.7, 15.3, 16.6, 17.3, 18.1, 18.4, 18.8, 33.0),
    446_064: (0.8, 1.7, 2.1, 2.3, 3.5, 5.0, 9.8, 13.4, 15.1, 16.5, 17.2, 18.1, 18.4, 18.9, 31.0),
    2_703: (1.4, 1.6, 1.8, 1.9, 2.4, 2.7, 3.8, 5.9, 9.3, 13.3, 16.4, 23.8, 28.5, 32.3, 32.6),
    2_864: (1.1, 1.3, 1.7, 1.8, 2.2, 2.6, 3.5, 5.3, 7.9, 12.0, 15.0, 22.2, 27.1, 32.4, 35.2),
    2_620: (1.3, 1.6, 1.8, 2.0, 2.3, 2.7, 3.7, 5.8, 9.6, 14.6, 17.8, 25.5, 28.4, 32.8, 35.0),
    2_939: (1.2, 1.5, 1.8, 1.9, 2.3, 2.6, 3.4, 5.2, 8.2, 12.6, 15.8, 21.4, 23.8, 33.5, 34.5),
}


def durations(count: int, seed: int = 0) -> np.ndarray:
    """[count] seconds, distributed as LibriSpeech's utterances (all of its parts)."""
    draw = np.random.default_rng(seed)
    of_part = np.array(list(LIBRISPEECH))
    part, percent = draw.choice(len(of_part), count, p=of_part / of_part.sum()), 100 * draw.random(count)
    quantiles = [np.interp(percent, PERCENTILES, values) for values in LIBRISPEECH.values()]
    return np.array(quantiles)[part, np.arange(count)]
