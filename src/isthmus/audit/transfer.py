"""Transfer: what can be read, linearly, from frozen features before and after, on tasks that nobody narrowed for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isthmus.audit.calibration import measure_calibration
from isthmus.audit.checks import Array, Integers, check_count, check_finite, check_labels
from isthmus.audit.ranks import rank_losses
from isthmus.audit.resampling import Estimate, damage_draws, percentile
from isthmus.audit.ridge import fit_ridge
from isthmus.errors import BadInput
from isthmus.tasks.probe import fit_probe

SHOTS = (5, 20)  # examples of each class
PAIR_SHOTS = (32, 128)
DRAWS = 5


@dataclass(frozen=True)
class TransferSet:
    """A labelled set as a network sees it.

    Parameters
    ----------
    name : str
    train, test : array (examples, width)
        Frozen features.
    train_targets, test_targets : array (examples,)
        Classes from 0, or scores where ``classes`` is 0.
    classes : int
    """

    name: str
    train: Array
    test: Array
    train_targets: Array
    test_targets: Array
    classes: int


@dataclass(frozen=True)
class TransferCell:
    """One figure of the card: of a network, on a set, in a column; ``change`` is held against the first network."""

    network: str
    dataset: str
    column: str
    value: Estimate
    change: Estimate | None


@dataclass(frozen=True)
class TransferCorrelation:
    """Spearman's correlation over networks of the source score and a column, after Ericsson et al. 2021."""

    dataset: str
    column: str
    correlation: float
    networks: int


@dataclass(frozen=True)
class Transfer:
    """The transfer card."""

    networks: tuple[str, ...]
    cells: tuple[TransferCell, ...]
    correlations: tuple[TransferCorrelation, ...]
    warnings: tuple[str, ...]


def measure_transfer(
    networks: Sequence[str],
    sets: Sequence[Sequence[TransferSet]],
    source: Sequence[float] = (),
    *,
    seed: int = 0,
) -> Transfer:
    """Return the transfer card (Ericsson et al. 2021, *How Well Do Self-Supervised Models Transfer?*).

    Columns: ``many-shot`` (accuracy of a softmax regression on all training features; for scores the Spearman
    correlation of a ridge regression), ``few-shot k`` (the same on k examples a class, or k pairs, the mean of five
    draws that are the same for every network) and ``calibration error`` (root mean square, debiased, of the
    many-shot probe's probabilities). Intervals are bootstraps over test examples and draws; those of changes are paired by example.

    Parameters
    ----------
    networks : sequence of str
        The original first.
    sets : sequence of sequences of TransferSet
        For each network the same sets.
    source : sequence of float, optional
        Each network's score on the task that it was narrowed for; with three networks or more its rank correlation
        with each column is given.
    seed : int

    Raises
    ------
    BadInput
        If features or targets are not finite, of other examples, or too few.
    """
    if len(sets) != len(networks) or len({tuple(one.name for one in row) for row in sets}) > 1:
        raise BadInput("transfer: every network must be given the same sets; give one list of sets a network")
    cells: list[TransferCell] = []
    warnings: list[str] = []
    for place in range(len(sets[0]) if sets else 0):
        first: dict[str, Array] = {}
        base = sets[0][place]
        for network, row in zip(networks, sets, strict=True):
            columns, error = _columns(row[place], seed)
            if len(base.test) != len(row[place].test):
                raise BadInput(f"transfer {base.name}: networks were read on different examples; read them on the same")
            for column, values in columns.items():
                change = _change(first[column], values, seed) if column in first else None
                first.setdefault(column, values)
                cells.append(TransferCell(network, base.name, column, _change(None, values, seed), change))
            if error is not None:
                cells.append(TransferCell(network, base.name, "calibration error", error, None))
        if base.classes:
            rarest = int(np.bincount(base.train_targets.astype(int), minlength=base.classes).min())
            missing = [str(shots) for shots in SHOTS if rarest < shots]
            if missing:
                warnings.append(
                    f"{base.name}: its rarest class has {rarest} training examples, so no few-shot {', '.join(missing)}"
                )
    return Transfer(tuple(networks), tuple(cells), _correlations(networks, cells, source), tuple(warnings))


def _columns(data: TransferSet, seed: int) -> tuple[dict[str, Array], Estimate | None]:
    """Return per column what each test example scores, shape (draws, examples), and the probe's calibration error."""
    what = f"transfer {data.name}"
    train = check_finite(data.train, f"{what}: training features", (None, None))
    test = check_finite(data.test, f"{what}: test features", (None, train.shape[1]))
    check_count(len(test), f"{what}: test")
    check_count(len(train), f"{what}: training")
    rng = np.random.default_rng([seed, 4])
    if not data.classes:
        return _pair_columns(what, train, test, data, rng), None
    labels = check_labels(data.train_targets, len(train), data.classes)
    truth = check_labels(data.test_targets, len(test), data.classes)
    probe = fit_probe(train, labels, data.classes)
    calibrated = measure_calibration(_softmax(probe.logits(test)), truth, name=data.name, seed=seed)
    columns = {"many-shot": (probe.predict(test) == truth).astype(np.float64)[None]}
    for shots in SHOTS:
        chosen = [_balanced(labels, data.classes, shots, rng) for _ in range(DRAWS)]
        if all(part is not None for part in chosen):
            rows = [
                fit_probe(train[part], labels[part], data.classes).predict(test) == truth
                for part in chosen
                if part is not None
            ]
            columns[f"few-shot {shots}"] = np.stack(rows).astype(np.float64)
    return columns, calibrated.rms_debiased


def _pair_columns(
    what: str, train: Array, test: Array, data: TransferSet, rng: np.random.Generator
) -> dict[str, Array]:
    targets = check_finite(data.train_targets, f"{what}: training scores", (len(train),))
    truth = check_finite(data.test_targets, f"{what}: test scores", (len(test),))
    columns = {"many-shot": 1 - rank_losses(fit_ridge(train, targets).predict(test), truth)[None]}
    for shots in PAIR_SHOTS:
        if len(train) >= shots:
            parts = [rng.permutation(len(train))[:shots] for _ in range(DRAWS)]
            rows = [1 - rank_losses(fit_ridge(train[part], targets[part]).predict(test), truth) for part in parts]
            columns[f"few-shot {shots}"] = np.stack(rows)
    return columns


def _balanced(labels: Integers, classes: int, shots: int, rng: np.random.Generator) -> npt.NDArray[np.int64] | None:
    """Return the places of so many examples of each class, or None where one has fewer."""
    places = [rng.permutation(np.flatnonzero(labels == number))[:shots] for number in range(classes)]
    return np.concatenate(places) if min(map(len, places)) == shots else None


def _softmax(logits: Array) -> Array:
    from scipy.special import softmax

    return np.asarray(softmax(logits, axis=1), dtype=np.float64)


def _change(first: Array | None, values: Array, seed: int) -> Estimate:
    """Return the mean of values (draws, examples), or its difference from that of others, with its interval."""
    base = np.zeros_like(values[:1]) if first is None else first
    drawn, _ = damage_draws(base, values, np.zeros((0, values.shape[1]), dtype=bool), seed, 1000)
    return percentile(float(values.mean() - base.mean()), drawn, values.shape[1])


def _correlations(
    networks: Sequence[str], cells: Sequence[TransferCell], source: Sequence[float]
) -> tuple[TransferCorrelation, ...]:
    from isthmus.tasks.metrics import spearman

    if len(networks) < 3 or len(source) != len(networks):
        return ()
    scores = np.array(source, dtype=np.float64)
    found = []
    for dataset, column in dict.fromkeys((cell.dataset, cell.column) for cell in cells):
        values = [cell.value.value for cell in cells if (cell.dataset, cell.column) == (dataset, column)]
        if len(values) == len(networks):
            found.append(TransferCorrelation(dataset, column, spearman(scores, np.array(values)), len(networks)))
    return tuple(found)
