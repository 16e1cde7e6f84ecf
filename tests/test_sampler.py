"""Sampling and packing of sizes: a pure function, complete, nearly without padding."""

import numpy as np
import pytest

from mmjax.config import load
from mmjax.data.layout import Layout
from mmjax.data.sampler import Sampler, best_fit
from mmjax.errors import UserError
from mmjax.evaluate.evaluation import spread

ROWS = {"speech": 740, "image": 448, "text": 25, "transcript": 37, "examples": 8}
SUBSETS = {"speech+image": 0.6, "image+text": 0.3, "speech": 0.1}


def sizes(count=3000, seed=0):
    generator = np.random.default_rng(seed)
    text = generator.integers(5, 13, count)
    return Layout.of(ROWS).positions({"speech": 160 * generator.integers(90, 230, count), "text": text})


def make(count=3000, **options):
    return Sampler(sizes(count), ROWS, SUBSETS, 8, seed=3, window=512, **options)


def flat(sampler, steps):
    return [
        (int(example), subset)
        for step in steps
        for row in sampler.rows(step)
        for example, subset in zip(row.examples, row.subsets, strict=True)
    ]


def test_an_epoch_holds_every_example_once():
    sampler = make(epochs=1)
    seen = sorted(example for example, _ in flat(sampler, range(len(sampler))))
    assert seen == list(range(3000))


def test_two_epochs_come_in_different_orders():
    sampler = make(epochs=2)
    order = [example for example, _ in flat(sampler, range(len(sampler)))]
    assert sorted(order) == sorted(2 * list(range(3000)))
    assert order[:100] != order[3000:3100]


def test_no_row_holds_more_than_it_can():
    sampler, taken = make(), sizes()
    for row in (row for step in range(40) for row in sampler.rows(step)):
        for name, capacity in ROWS.items():
            needs = {"transcript": "speech"}.get(name, name)
            shown = [needs in subset or name == "examples" for subset in row.subsets]
            assert (taken[name][row.examples] * shown).sum() <= capacity


def test_a_step_is_a_function_of_seed_and_step_alone():
    there, here = make(), make()
    straight = [flat(there, [step]) for step in range(60)]
    here.restore(make().state(45))
    assert [flat(here, [step]) for step in (50, 45, 59)] == [straight[step] for step in (50, 45, 59)]
    assert flat(here, [3]) == straight[3], "a step before the anchor is found again"


def test_the_state_is_a_few_integers():
    state = make().state(1000)
    assert set(state) == {"step", "window", "rows_before"}
    assert all(isinstance(value, int) for value in state.values())


def test_subsets_are_drawn_as_often_as_asked():
    drawn = [subset for _, subset in flat(make(), range(300))]
    for subset, share in SUBSETS.items():
        assert drawn.count(frozenset(subset.split("+"))) / len(drawn) == pytest.approx(share, abs=0.02)


def test_first_items_are_drawn_uniformly():
    # Trap H12: a shuffle that leaves neighbours together. Kolmogorov-Smirnov at p > 0.001.
    order = np.array([example for example, _ in flat(make(), range(8))][:500])
    gaps = np.abs(np.sort(order) / 3000 - np.arange(len(order)) / len(order)).max()
    assert gaps < 1.95 / len(order) ** 0.5


def test_batches_are_fair_samples():
    """The packer takes what fits, but no batch is made of long questions and another of short ones."""
    lengths = sizes(12_000)["text"]
    sampler = Sampler(sizes(12_000), ROWS, SUBSETS, 8, seed=3)
    batches = [np.array([example for example, _ in flat(sampler, [step])]) for step in range(200)]
    spread = np.std([lengths[batch].mean() for batch in batches])
    by_chance = lengths.std() / np.mean([len(batch) for batch in batches]) ** 0.5
    assert spread == pytest.approx(by_chance, rel=0.2)


def test_too_long_examples_are_counted_and_left_out():
    taken = sizes(100)
    taken["speech"][7] = ROWS["speech"] + 1
    sampler = Sampler(taken, ROWS, SUBSETS, 8, epochs=1)
    assert sampler.too_long == 1
    assert 7 not in [example for example, _ in flat(sampler, range(len(sampler)))]


def test_of_many_examples_a_part_is_drawn_from_all_over():
    chosen = spread(300, 3000)
    numbers = [n for n, _ in flat(make(among=chosen, epochs=1, shuffle=False), range(100))]
    assert sorted(numbers) == list(range(0, 3000, 10))
    assert spread(7, 10).sum() == 7 and spread(10, 10) is None and spread(None, 10) is None


def test_nothing_fits_is_an_error_that_says_so():
    with pytest.raises(UserError, match="no example fits into a row"):
        Sampler(sizes(10), ROWS | {"image": 3}, SUBSETS, 8)


def test_best_fit_places_every_item():
    items = np.random.default_rng(0).integers(1, 40, (400, 3))
    capacity = np.array([100, 90, 120])
    rows = best_fit(items, capacity)
    assert sorted(np.concatenate(rows)) == list(range(400))
    assert all((items[row].sum(axis=0) <= capacity).all() for row in rows)


def test_best_fit_is_within_two_percent_of_what_is_possible():
    """No packing takes fewer rows than the fullest stream needs; pictures of one size, speech of any, texts of two kinds."""
    draw = np.random.default_rng(0)
    speech = 4 * draw.integers(10, 100, 4096) * (draw.random(4096) < 0.6)
    image, text = 64 * (draw.random(4096) < 0.6), np.where(draw.random(4096) < 0.3, draw.integers(20, 200, 4096), 8)
    items = np.stack([speech, image, text, np.ones(4096, int)], axis=1)
    capacity = np.ceil(items.mean(axis=0) * 40 * [1.02, 1.0, 1.1, 1.05]).astype(int)
    capacity[1] = round(capacity[1] / 64) * 64
    rows = best_fit(items, capacity)
    assert sorted(np.concatenate(rows)) == list(range(4096))
    assert len(rows) <= 1.02 * (items.sum(axis=0) / capacity).max() + 1


def test_best_fit_takes_whole_numbers_of_any_kind_and_packs_the_same_rows():
    items = np.random.default_rng(0).integers(1, 40, (400, 3))
    capacity = np.array([100, 90, 120])
    one, other = best_fit(items, capacity), best_fit(items.astype(np.uint8), capacity.astype(np.int32))
    assert all((a == b).all() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("config", ["quickstart", pytest.param("spoken_vqa", marks=pytest.mark.slow)])
def test_padding_is_at_most_ten_percent_in_every_stream(config):
    """On the sizes of the whole training split (the committed index; no data needed)."""
    config = load(f"configs/{config}.py")
    with np.load("tests/data/spoken_easy_vqa_sizes.npz") as index:
        index = {"speech": index["speech"].astype(np.int64), "text": index["text"].astype(np.int64)}
    layout = Layout.of(config.data.rows)
    sampler = Sampler(
        layout.positions(index),
        layout.rows,
        config.data.subsets,
        config.data.batch_rows,
        seed=0,
        window=config.data.window,
        needs=layout.needs,
    )
    useful = sampler.useful_share(layout.tokens(index), steps=range(500))
    assert all(share >= 0.90 for share in useful.values()), useful
