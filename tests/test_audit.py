"""The audit's measures: each against another computation or library, on planted damage, and on bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.neighbors import NearestNeighbors

from isthmus.audit.amplification import measure_amplification
from isthmus.audit.damage import measure_damage
from isthmus.audit.discovery import discover_slices
from isthmus.audit.exemplars import divergence_nats, find_exemplars, modal_labels
from isthmus.audit.neighbours import measure_neighbours, nearest
from isthmus.audit.position import measure_position_bias
from isthmus.audit.ranks import rank_losses
from isthmus.audit.resampling import exact_share, excess_test
from isthmus.audit.robustness import measure_robustness
from isthmus.audit.slices import Column, Slice, slices_of
from isthmus.errors import BadInput

Array = np.ndarray[Any, Any]


def population(
    networks: int, count: int, classes: int = 3, *, noise: float = 1.0, seed: int = 0
) -> tuple[Array, Array]:
    """Return probabilities (networks, count, classes) that share a signal, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    ease = rng.gamma(2, 1, (count, 1))
    logits = 2 * ease * np.eye(classes)[labels] + noise * rng.normal(0, 1, (networks, count, classes))
    exponents = np.exp(logits)
    return exponents / exponents.sum(axis=2, keepdims=True), labels


def planted(count: int = 2000, *, harm: float = 0.4, seed: int = 0) -> tuple[Array, Array, tuple[Slice, ...]]:
    """Return 0/1 losses of an original and of a narrowed network that errs on slice 3 of twenty, and the slices."""
    rng = np.random.default_rng(seed)
    slices = tuple(Slice(f"s{number}", rng.random(count) < 0.05 + 0.02 * number) for number in range(20))
    original = (rng.random(count) < 0.1).astype(float)
    hurt = slices[3].mask & (rng.random(count) < harm)
    return original, np.maximum(original, hurt), slices


# Exemplars.


def test_modal_label_is_the_vote_and_mass_breaks_a_tie() -> None:
    votes = np.array([[[0.5, 0.4, 0.1]], [[0.1, 0.6, 0.3]], [[0.6, 0.2, 0.2]]])
    assert modal_labels(votes).tolist() == [0]
    tied = np.array([[[0.9, 0.1]], [[0.4, 0.6]]])
    assert modal_labels(tied).tolist() == [0]
    assert modal_labels(tied[:, :, ::-1]).tolist() == [1]


def test_divergence_is_the_entropy_of_scipy() -> None:
    first, _ = population(3, 40, seed=1)
    second, _ = population(2, 40, seed=2)
    expected = stats.entropy(first.mean(axis=0), second.mean(axis=0), axis=1)
    assert divergence_nats(first, second) == pytest.approx(expected, abs=1e-9)


def test_exemplars_are_harder_than_average_for_originals_that_did_not_choose_them() -> None:
    both, labels = population(9, 1500)
    blurred = both[3:6] ** 0.3
    narrowed = blurred * np.random.default_rng(1).gamma(1.5, 1, blurred.shape)
    narrowed /= narrowed.sum(axis=2, keepdims=True)
    found = find_exemplars(both[:3], narrowed, labels)
    assert 10 < found.count < 1000
    assert found.gap is not None
    assert found.gap.high < 0
    assert found.accuracy is not None
    assert found.accuracy_all is not None
    assert found.gap.value == pytest.approx(found.accuracy.value - found.accuracy_all.value)
    # Originals of other seeds, which had no part in the choice, err on them too.
    mask = modal_labels(both[:3]) != modal_labels(narrowed)
    right = both[6:].argmax(axis=2) == labels
    assert right[:, mask].mean() < right.mean() - 0.1
    assert found.share.value == pytest.approx(mask.mean())
    rows = found.rows
    assert [row.nats for row in rows] == sorted((row.nats for row in rows), reverse=True)
    assert all(mask[row.index] for row in rows)


def test_equal_populations_have_no_exemplars() -> None:
    both, labels = population(2, 100)
    found = find_exemplars(both, both, labels)
    assert found.count == 0
    assert found.accuracy is None
    assert found.nats.value == 0
    assert find_exemplars(both, both).accuracy_all is None


def test_few_examples_and_one_original_are_said() -> None:
    both, labels = population(2, 30)
    found = find_exemplars(both[0], both[1], labels)
    assert any("30 examples: fewer than 50" in warning for warning in found.warnings)
    assert any("one original" in warning for warning in found.warnings)


# Damage, slices, discovery.


def test_exact_share_is_clopper_and_pearson() -> None:
    found = exact_share(7, 50)
    assert found.low == pytest.approx(stats.beta.ppf(0.025, 7, 44))
    assert found.high == pytest.approx(stats.beta.ppf(0.975, 8, 43))


def test_planted_damage_is_found_and_its_interval_excludes_zero() -> None:
    original, narrowed, slices = planted()
    found = measure_damage(original, narrowed, slices)
    worst = found.rows[0]
    assert worst.name == "s3"
    assert worst.found
    assert worst.damage.low > 0
    mask = slices[3].mask
    assert worst.damage.value == pytest.approx((narrowed - original)[mask].mean())
    assert worst.excess == pytest.approx(worst.damage.value - (narrowed - original)[~mask].mean())
    assert [row.name for row in found.rows if row.found] == ["s3"]


def test_no_damage_is_not_found() -> None:
    original, _, slices = planted()
    found = measure_damage(original, original, slices)
    assert not any(row.found for row in found.rows)
    assert found.overall.value == found.overall.low == found.overall.high == 0
    for row in found.rows:
        assert row.damage.low < 0 < row.damage.high  # none changed of so many: a share of up to this much may
        exact = stats.binomtest(0, row.count).proportion_ci(1 - 0.05 / len(slices), method="exact").high
        assert row.damage.high == pytest.approx(exact)


def test_false_finds_are_as_rare_as_said() -> None:
    """Damage that is the same everywhere: over 60 worlds, about 3 may find a slice by chance; 9 would be p < 0.003."""
    finds = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        change = rng.choice([-1.0, 0.0, 1.0], 300, p=[0.05, 0.8, 0.15])
        masks = rng.random((12, 300)) < 0.15
        finds += bool((excess_test(change, masks, seed, 400) < 0.05).any())
    assert finds <= 8


def test_excess_test_is_an_exact_permutation_test_for_one_slice() -> None:
    rng = np.random.default_rng(4)
    change = rng.normal(0, 1, 40)
    mask = np.arange(40) < 12
    change[mask] += 0.5
    theirs = stats.permutation_test(
        (change[mask], change[~mask]), lambda x, y: x.mean() - y.mean(), alternative="greater", n_resamples=20000, rng=1
    )
    assert excess_test(change, mask[None], 0, 20000)[0] == pytest.approx(theirs.pvalue, abs=0.01)


def test_simultaneous_intervals_hold_the_truth() -> None:
    """All ten slices' true damage lies in its interval in about 19 of 20 worlds."""
    held = 0
    for seed in range(50):
        rng = np.random.default_rng(seed)
        slices = [Slice(str(part), np.arange(500) // 50 == part) for part in range(10)]
        losses = rng.exponential(1, (2, 500))
        found = measure_damage(losses[0], losses[1] + 0.2, slices, seed=seed)
        held += all(row.damage.low <= 0.2 <= row.damage.high for row in found.rows)
    assert held >= 42  # fewer would have a chance of a thousandth at 95 %


def test_networks_are_drawn_again_too() -> None:
    rng = np.random.default_rng(0)
    original = np.zeros((1, 400))
    spread = np.stack([np.full(400, value) for value in (0.0, 0.5, 1.0)]) + rng.normal(0, 0.01, (3, 400))
    assert measure_damage(original, spread).overall.high > 0.7
    assert measure_damage(original, spread.mean(axis=0)).overall.high < 0.51


def test_a_planted_slice_is_discovered_and_nothing_where_nothing_is() -> None:
    original, narrowed, slices = planted(3000)
    found = discover_slices(original, narrowed, slices)
    assert found.names
    assert all("s3" in name for name in found.names)
    best = next(row for row in found.tested.rows if row.name == found.names[0])
    assert best.damage.low > 0
    assert found.searched > len(slices)
    assert discover_slices(original, original, slices).names == ()
    rng = np.random.default_rng(9)
    uniform = np.maximum(original, rng.random(3000) < 0.1)
    assert discover_slices(original, uniform, slices).names == ()


def test_a_pair_of_slices_is_discovered() -> None:
    rng = np.random.default_rng(2)
    slices = [Slice(f"s{number}", rng.random(4000) < 0.3) for number in range(8)]
    both = slices[1].mask & slices[5].mask
    narrowed = (both & (rng.random(4000) < 0.6)).astype(float)
    found = discover_slices(np.zeros(4000), narrowed, slices)
    assert found.names[0] in ("s1 and s5", "s5 and s1")


def test_amplification_is_the_ratio_and_rarity_goes_with_it_where_planted() -> None:
    rng = np.random.default_rng(3)
    part = rng.choice(8, 4000, p=np.array([32, 24, 16, 12, 8, 4, 2, 2]) / 100)
    chance = np.array([0.02, 0.03, 0.05, 0.08, 0.15, 0.3, 0.5, 0.6])[part]
    narrowed = (rng.random(4000) < chance).astype(float)
    slices = [Slice(str(number), part == number) for number in range(8)]
    found = measure_amplification(np.zeros(4000), narrowed, slices)
    assert found.correlation is not None
    assert found.p_value is not None
    theirs = stats.spearmanr([row.rarity for row in found.rows], [row.amplification.value for row in found.rows])
    assert found.correlation == pytest.approx(theirs.statistic)
    assert found.correlation < -0.8
    assert found.p_value < 0.05
    row = next(row for row in found.rows if row.name == "6")
    assert row.amplification.value == pytest.approx(narrowed[part == 6].mean() / narrowed.mean())
    assert row.amplification.low > 1
    none = measure_amplification(narrowed, narrowed, slices)
    assert none.rows == ()
    assert "cannot be told from none" in none.warnings[0]


def test_slices_of_ties_constants_and_gaps() -> None:
    tied = Column("ties", tuple([1] * 60 + [2] * 30 + list(range(3, 13))))
    few = Column("few", tuple(number % 3 for number in range(100)))
    constant = Column("same", (5,) * 100)
    gaps = Column("gaps", tuple(None if number < 20 else number % 2 == 0 for number in range(100)))
    nan = Column("nan", tuple(float("nan") if number < 50 else float(number) for number in range(100)))
    words = Column("word", ("a",) * 50 + ("b",) * 45 + ("c",) * 5)
    slices, warnings = slices_of([tied, few, constant, gaps, nan, words], 100)
    masks = {piece.name: int(piece.mask.sum()) for piece in slices}
    assert masks["ties 1"] == 60  # equal numbers stay together, whatever the quarter
    assert masks["few 0"] == 34
    assert masks["gaps"] == 40
    assert sum(size for name, size in masks.items() if name.startswith("nan ")) == 50
    assert masks["word a"] == 50
    assert "word c" not in masks
    said = " | ".join(warnings)
    assert "column same: constant" in said
    assert "column gaps: 20 values are missing" in said
    assert "column word: 1 of its slices hold fewer than 10" in said
    again, _ = slices_of([few, Column("copy", few.values)], 100)
    assert {piece.name for piece in again} == {"few 0", "few 1", "few 2"}  # the same examples twice are one slice


# Pairs, neighbours, position, robustness.


def test_mean_rank_loss_is_one_less_spearman() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, 200), rng.integers(0, 5, 200).astype(float)
    y += x > 0
    assert 1 - rank_losses(x, y).mean() == pytest.approx(stats.spearmanr(x, y).statistic)
    assert (rank_losses(np.ones(5), np.arange(5.0)) == 1).all()


def test_neighbours_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 1, (700, 8)), rng.normal(0, 1, (700, 5))
    theirs = [
        NearestNeighbors(n_neighbors=11, metric="cosine").fit(each).kneighbors(each)[1][:, 1:]
        for each in (first, second)
    ]
    assert (nearest(first, 10) == theirs[0]).all()
    found = measure_neighbours(first, second)
    shared = [len(set(a) & set(b)) / 10 for a, b in zip(*theirs, strict=True)]
    assert found.overlap.value == pytest.approx(np.mean(shared))
    assert found.overlap.low < found.chance < found.overlap.high + 0.01
    assert found.rows[0].overlap == min(shared)
    same = measure_neighbours(first, first * 3, [str(number) for number in range(700)])
    assert same.overlap.value == same.same_first == 1
    assert same.rows == ()


def test_duplicates_among_features_are_said() -> None:
    features = np.random.default_rng(0).normal(0, 1, (60, 4))
    features[10] = features[3]
    found = measure_neighbours(features, features)
    assert any("1 examples have the features of another in the original" in warning for warning in found.warnings)
    assert found.overlap.value == 1


def test_position_bias_finds_a_planted_slope() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0, 1, (120, 1))
    original = base + rng.normal(0, 0.01, (120, 5))
    narrowed = base + np.linspace(0.5, -0.5, 5) + rng.normal(0, 0.01, (120, 5))
    found = measure_position_bias(original, narrowed)
    assert found.slope_original.low < 0 < found.slope_original.high or abs(found.slope_original.value) < 0.01
    line = np.polyfit(np.linspace(0, 1, 5), narrowed.mean(axis=0), 1)
    assert found.slope_narrowed.value == pytest.approx(line[0])
    assert found.slope_change.high < -0.9
    assert found.spread_change.low > 0.3
    assert [one.value for one in found.narrowed] == pytest.approx(narrowed.mean(axis=0).tolist())


def test_robustness_is_the_difference_of_increases() -> None:
    rng = np.random.default_rng(0)
    clean = rng.random((2, 200)), rng.random((3, 200))
    worse = np.stack([clean[0] + 0.1, clean[0] + 0.3]), np.stack([clean[1] + 0.5, clean[1] + 0.7])
    found = measure_robustness(*clean, {("typos", 0.2): worse})
    row = found.rows[0]
    assert (row.original.value, row.narrowed.value, row.extra.value) == pytest.approx((0.2, 0.6, 0.4))
    assert row.seeds == 2
    assert row.extra.low == pytest.approx(0.4)


# Bad input: one line on what, where and how to mend it.


def bad(values: Array) -> Array:
    broken = values.copy()
    broken[..., 3, 1] = np.nan
    return broken


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p, y: find_exemplars(bad(p), p, y), "not a finite number at"),
        (lambda p, y: find_exemplars(p * 2, p, y), "apply a softmax"),
        (lambda p, y: find_exemplars(p[:, :5], p[:, :5]), "too few to audit"),
        (lambda p, y: find_exemplars(p, p[:, :50], y), "cannot be compared"),
        (lambda p, y: find_exemplars(p, p, y[:5]), "shape"),
        (lambda p, y: find_exemplars(p, p, y + 7), "from 0 to 2"),
        (lambda p, y: find_exemplars(p, p, y + 0.5), "whole numbers"),
        (lambda p, y: find_exemplars(p[..., :1] / p[..., :1], p), "two or more"),
        (lambda p, y: measure_damage(y * 1.0, np.ones(7)), "shape"),
        (lambda p, y: measure_damage(y * 1.0, y * np.nan), "not a finite number"),
        (lambda p, y: measure_damage(y, y, [Slice("none", y < 0)]), "slice none"),
        (lambda p, y: measure_damage(["a"], ["b"]), "not an array of numbers"),
        (lambda p, y: slices_of([Column("short", (1, 2))], 100), "column short: 2 values for 100"),
        (lambda p, y: measure_neighbours(p[0], p[0][:40]), "shape"),
        (lambda p, y: measure_neighbours(p[0], p[0], k=0), "k is 0"),
        (lambda p, y: measure_position_bias(p[0][:, :1], p[0][:, :1]), "two or more"),
        (lambda p, y: measure_robustness(y, y, {("x", 0.1): (y[None, None, :4], y[None, None])}), "under x 0.1"),
    ],
)
def test_bad_input_is_one_clear_line(call: Any, words: str) -> None:
    probabilities, labels = population(2, 100)
    with pytest.raises(BadInput, match=words) as caught:
        call(probabilities, labels)
    assert "\n" not in str(caught.value)
