"""Posterior collapse: which latents of a linear variational autoencoder die, from the data's spectrum; and an alarm.

The optimum of a linear autoencoder falls apart into one problem for each principal direction of the data, so that the
direction's variance says whether a latent is worth its rate (Dang et al. 2024, arXiv 2306.05023; derived here anew for
the expected loss named in each docstring). For other networks these rules are a guide; the alarm says what happened.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from isthmus.errors import BadInput
from isthmus.information.checking import Floats, representations
from isthmus.information.training.bottleneck import closed_units


@dataclass(frozen=True)
class Latents:
    """What latents carry at the optimum, largest first.

    Parameters
    ----------
    variances : ndarray, shape ``(latents,)``
        Of the directions of the data that they would code; 0 beyond the data's width.
    nats : ndarray, shape ``(latents,)``
        That each shares with the data; 0 for a dead one.
    """

    variances: Floats
    nats: Floats

    @property
    def alive(self) -> int:
        """How many latents are not dead."""
        return int((self.nats > 0).sum())


@dataclass(frozen=True)
class Alarm:
    """What units of a code carry, and whether that is alarming.

    Parameters
    ----------
    nats : tuple of float
        Mean divergence of each unit from the prior.
    dead : tuple of int
        Units below the threshold.
    message : str or None
        One line; None where as many units as expected are alive.
    """

    nats: tuple[float, ...]
    dead: tuple[int, ...]
    message: str | None


def vae_latents(data: npt.ArrayLike, latents: int, *, beta: float = 1.0, decoder_deviation: float = 1.0) -> Latents:
    """Return what the latents of a linear variational autoencoder carry.

    Of ``E |x - U z|^2 / (2 s^2) + beta KL``, the encoder's variances learnt: a latent is dead where its direction's
    variance is at most ``beta s^2``, and carries half the logarithm of the ratio otherwise. The prior's variance does
    not matter.

    Parameters
    ----------
    data : array_like, shape ``(samples, width)``
        The mean is taken away.
    latents : int
    beta : float
        Weight of the divergence.
    decoder_deviation : float
        ``s``, in units of the data.

    Raises
    ------
    BadInput
        If data are no finite matrix of two samples, or a parameter is not above 0.
    """
    _check(latents=latents, beta=beta, decoder_deviation=decoder_deviation)
    matrix = representations(data, what="data")
    return _latents(_covariance(matrix, matrix), latents, beta * decoder_deviation**2)


def conditional_latents(
    inputs: npt.ArrayLike, outputs: npt.ArrayLike, latents: int, *, beta: float = 1.0, decoder_deviation: float = 1.0
) -> Latents:
    """Return what the latents of a linear conditional variational autoencoder carry: decoder ``U z + T x`` of y.

    The rule is that of `vae_latents` on what is left of the outputs' covariance after the inputs have explained what
    they can: the more inputs and outputs correlate, the more latents die.

    Parameters
    ----------
    inputs : array_like, shape ``(samples, given)``
    outputs : array_like, shape ``(samples, width)``
    latents, beta, decoder_deviation
        See `vae_latents`.

    Raises
    ------
    BadInput
        If a side is no finite matrix, lengths differ, or a parameter is not above 0.
    """
    _check(latents=latents, beta=beta, decoder_deviation=decoder_deviation)
    given, wanted = representations(inputs, what="inputs"), representations(outputs, what="outputs")
    if len(given) != len(wanted):
        raise BadInput(f"{len(given)} inputs and {len(wanted)} outputs; give pairs")
    cross = _covariance(given, wanted)
    explained = cross.T @ np.linalg.pinv(_covariance(given, given), hermitian=True) @ cross
    return _latents(_covariance(wanted, wanted) - explained, latents, beta * decoder_deviation**2)


def hierarchical_latents(
    data: npt.ArrayLike,
    latents: tuple[int, int],
    *,
    betas: tuple[float, float] = (1.0, 1.0),
    decoder_deviation: float = 1.0,
    prior_deviation: float = 1.0,
    encoder_deviation: float | None = None,
) -> tuple[Latents, Latents]:
    """Return what both levels of a linear hierarchical variational autoencoder share with the data.

    Of ``E |x - U z1|^2 / (2 s^2) + beta1 E[ln q(z1|x) - ln p(z1|z2)] + beta2 E KL(q(z2|z1), p(z2))``, where
    ``p(z1|z2)`` has a mean linear in z2 and the deviation ``prior_deviation``, and the variances of ``q(z2|z1)`` are
    learnt.

    Where the variances of ``q(z1|x)`` are learnt as well, the first level takes all that is worth its rate and stays
    within its prior: the second level is dead whatever the data (for ``beta2 >= beta1``; below, the loss has no lower
    end). Where they are fixed at ``e^2``, the variance m of a latent of the first level is ``e h sqrt(v / beta1) / s``,
    or ``v e^2 / (beta2 s^2)`` if that makes it exceed ``h^2 beta2 / beta1``; v the data's variance, h the prior's
    deviation. The latent is dead unless ``m > e^2``, and that above it unless ``m > h^2 beta2 / beta1``.

    Parameters
    ----------
    data : array_like, shape ``(samples, width)``
    latents : tuple of int
        Of the first level, next to the data, and of the second; not more of the second.
    betas : tuple of float
        Weights of the two divergences.
    decoder_deviation, prior_deviation : float
    encoder_deviation : float or None
        Of ``q(z1|x)``; None where it is learnt.

    Raises
    ------
    BadInput
        If data are no finite matrix, a parameter is not above 0, the second level is wider than the first, or the loss
        has no lower end.
    """
    below, above = latents
    first, second = betas
    _check(latents=min(latents), beta=min(betas), decoder_deviation=decoder_deviation, prior_deviation=prior_deviation)
    if above > below:
        raise BadInput(f"latents {latents}: the second level is wider than the first; give it at most as many")
    matrix = representations(data, what="data")
    if encoder_deviation is None:
        if second < first:
            raise BadInput(f"betas {betas} with learnt variances: the loss has no lower end; give beta2 >= beta1")
        found = _latents(_covariance(matrix, matrix), below, first * decoder_deviation**2)
        return found, Latents(found.variances[:above], np.zeros(above))
    _check(encoder_deviation=encoder_deviation)
    noise, prior = encoder_deviation**2, prior_deviation**2
    variances = _spectrum(_covariance(matrix, matrix), below)
    signal = variances * noise / decoder_deviation**2
    spread = np.sqrt(signal * prior / first)
    # Only where there is a latent above does the larger variance pay.
    wide = (spread > prior * second / first) & (np.arange(below) < above)
    spread = np.maximum(np.where(wide, signal / second, spread), noise)
    lower = 0.5 * np.log(spread / noise)
    share = np.minimum(second * prior / (first * spread[:above]), 1.0)
    left = (1 - share) * noise / spread[:above] + share
    upper = np.where(lower[:above] > 0, -0.5 * np.log(left), 0.0)
    return Latents(variances, lower), Latents(variances[:above], upper)


def collapse_alarm(by_unit: Tensor, *, expected: int | None = None, least: float = 0.01) -> Alarm:
    """Return which units of a code are dead, and an alarm if fewer are alive than expected.

    Parameters
    ----------
    by_unit : Tensor, shape ``(batch, ..., width)``
        Nats: divergence of each code from the prior, as `VariationalBottleneck` gives it.
    expected : int, optional
        Units that should be alive, such as ``vae_latents(...).alive``; by default one: the code as a whole.
    least : float
        Nats below which a unit is dead.

    Raises
    ------
    BadInput
        If there are no codes or a value is not finite.
    """
    if by_unit.ndim < 2 or not by_unit.numel():
        raise BadInput(f"units of shape {tuple(by_unit.shape)}; give (batch, ..., width)")
    means = by_unit.detach().flatten(0, -2).double().mean(0)
    if not bool(means.isfinite().all()):
        unit = int((~means.isfinite()).nonzero()[0])
        raise BadInput(f"unit {unit}: its divergence is not a finite number; training has failed before this")
    dead = closed_units(by_unit.detach(), least=least)
    alive, wanted = int((~dead).sum()), 1 if expected is None else expected
    message = None
    if alive < wanted:
        share = float(means.sum())
        message = f"{alive} of {len(means)} units are alive, {wanted} expected; the code carries {share:.3g} nats"
    return Alarm(tuple(means.tolist()), tuple(int(unit) for unit in dead.nonzero().flatten()), message)


def _latents(covariance: Floats, latents: int, price: float) -> Latents:
    variances = _spectrum(covariance, latents)
    return Latents(variances, 0.5 * np.log(np.maximum(variances / price, 1.0)))


def _spectrum(covariance: Floats, latents: int) -> Floats:
    found = np.linalg.eigvalsh(covariance)[::-1].clip(min=0)[:latents]
    return np.pad(found, (0, latents - len(found)))


def _covariance(one: Floats, other: Floats) -> Floats:
    found: Floats = (one - one.mean(0)).T @ (other - other.mean(0)) / len(one)
    return found


def _check(**numbers: float) -> None:
    for name, value in numbers.items():
        if not (np.isfinite(value) and value > 0):
            raise BadInput(f"{name.replace('_', ' ')} {value!r}; give a number above 0")
