"""Posterior collapse (Dang et al. 2024): how many latents die, from the data's spectrum, beside networks that trained.

42 exact optima and 42 short trainings of small autoencoders: three minutes on one core.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from claims.coding import Point
from claims.common import Outcome
from claims.data import digest_of
from claims.equal_bytes import part_of
from claims.trials import Column, Trials, of_arm, paired
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED, Part
from isthmus.information.collapse import conditional_latents, hierarchical_latents
from isthmus.information.training.bottleneck import VariationalBottleneck, gaussian_rate

Floats = npt.NDArray[np.float64]
ROWS = {"a quarter given": 2, "half given": 4, "three quarters given": 6}
"""Rows of the eight of an image that the conditional autoencoder is given; it makes the others."""
LINEAR, RELU = "linear", "ReLU"
FIXED, LEARNT = "two levels, variances fixed", "two levels, variances learnt"
CONDITIONAL = tuple(f"{kind}, {share}" for kind in (LINEAR, RELU) for share in ROWS)
HIERARCHICAL = tuple(f"{kind}, {how}" for kind in (LINEAR, RELU) for how in (FIXED, LEARNT))
BETAS = (0.5, 2.0, 8.0)
ABOVE, ABOVE_LEARNT = (1.5, 3.0, 4.5), (1.5, 3.0)
"""Weights of the second level's divergence; that of the first is 1. Learnt variances want more than the first's."""
DEVIATION, NOISE, LATENTS, LEVELS = 0.2, 1.0, 10, (10, 6)
"""Of the decoder, of the fixed variances; how many latents, and on both levels."""
LEAST = 0.01
"""Nats below which a latent is dead, by the rule as by what is measured."""
HIDDEN, STEPS, BATCH, RATE = 64, 700, 128, 3e-3
CONCORDANT, MOSTLY = 0.95, 0.8


@cache
def digits() -> Floats:
    """Return scikit-learn's digits, shape ``(1797, 64)``, from 0 to 1."""
    from sklearn.datasets import load_digits

    found: Floats = load_digits().data / 16
    return found


def parts(arm: str) -> tuple[Floats, Floats]:
    """Return what is given and what is to be made, of every image."""
    given = next(rows for share, rows in ROWS.items() if arm.endswith(share)) * 8
    return digits()[:, :given], digits()[:, given:]


def optimum(shapes: Mapping[str, tuple[int, ...]], loss: Callable[..., Tensor], seed: int) -> dict[str, Tensor]:
    """Return parameters of the least loss, from a random start, in float64."""
    torch.manual_seed(seed)
    found = {name: (0.3 * torch.randn(shape, dtype=torch.float64)).requires_grad_() for name, shape in shapes.items()}
    optimizer = torch.optim.LBFGS(found.values(), max_iter=600, line_search_fn="strong_wolfe", tolerance_change=1e-10)

    def step() -> Tensor:
        optimizer.zero_grad()
        value = loss(**found)
        torch.autograd.backward(value)
        return value

    optimizer.step(step)  # type: ignore[no-untyped-call]
    return {name: one.detach() for name, one in found.items()}


def _covariance(data: Floats) -> Tensor:
    return torch.from_numpy(np.cov(data.T, bias=True))


def linear_conditional(arm: str, beta: float, seed: int) -> Tensor:
    """Return the divergence of each latent, in nats, of the linear autoencoder of least exact expected loss."""
    given, made = parts(arm)
    x, y = given.shape[1], made.shape[1]
    whole = _covariance(np.hstack([given, made]))
    reads = torch.cat([torch.zeros(y, x), torch.eye(y)], 1).double()

    def loss(u: Tensor, t: Tensor, w: Tensor, s: Tensor) -> Tensor:
        off = torch.cat([t, torch.zeros(y, y, dtype=t.dtype)], 1) + u @ w - reads
        error = ((off @ whole) * off).sum() + (u.square() * (2 * s).exp()).sum()
        moments = ((w @ whole) * w).sum(1) + (2 * s).exp()
        return error / (2 * DEVIATION**2) + beta * 0.5 * (moments - 1 - 2 * s).sum()

    found = optimum({"u": (y, LATENTS), "t": (y, x), "w": (LATENTS, x + y), "s": (LATENTS,)}, loss, seed)
    moments = ((found["w"] @ whole) * found["w"]).sum(1) + (2 * found["s"]).exp()
    return 0.5 * (moments - 1 - 2 * found["s"])


def linear_hierarchical(arm: str, beta: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return what the directions of both levels share with the data, in nats, at the least exact expected loss."""
    left, (below, above), fixed = _covariance(digits()), LEVELS, arm.endswith(FIXED)

    def moments(w: Tensor, s: Tensor, v: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        noise = torch.full((below,), NOISE**2, dtype=torch.float64) if fixed else (2 * s).exp()
        lower = w @ left @ w.T + torch.diag(noise)
        return noise, lower, v @ lower @ v.T + torch.diag((2 * r).exp())

    def loss(u: Tensor, w: Tensor, s: Tensor, t: Tensor, v: Tensor, r: Tensor) -> Tensor:
        noise, lower, upper = moments(w, s, v, r)
        error = left.trace() - 2 * (u @ w @ left).trace() + (u @ lower @ u.T).trace()
        apart = (lower - 2 * t @ v @ lower + t @ upper @ t.T).trace()
        rates = 0.5 * (apart - below - noise.log().sum()), 0.5 * (upper.trace() - above - 2 * r.sum())
        return error / (2 * DEVIATION**2) + rates[0] + beta * rates[1]

    width = len(left)
    shapes = {"u": (width, below), "w": (below, width), "s": (below,), "t": (below, above), "v": (above, below)}
    found = optimum({**shapes, "r": (above,)}, loss, seed)
    w, v = found["w"], found["v"]
    noise, lower, upper = moments(w, found["s"], v, found["r"])
    unseen = v @ torch.diag(noise) @ v.T + torch.diag((2 * found["r"]).exp())
    return _shared(lower, torch.diag(noise)), _shared(upper, unseen)


def _shared(whole: Tensor, noise: Tensor) -> Tensor:
    """Return half the logarithms of the eigenvalues of a covariance by that of its noise."""
    factor = torch.linalg.cholesky(noise)
    white = torch.linalg.solve(factor, torch.linalg.solve(factor, whole).T)
    found: Tensor = 0.5 * torch.linalg.eigvalsh(white).clamp(min=1).log()
    return found


def _layers(entering: int, leaving: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(entering, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, leaving))


class Conditional(nn.Module):
    """A conditional autoencoder of two layers with ReLU on each side."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(given + made, HIDDEN), nn.ReLU())
        self.code = VariationalBottleneck(HIDDEN, LATENTS)
        self.decode = _layers(LATENTS + given, made)

    def losses(self, given: Tensor, made: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return squared errors ``(batch,)``, and divergences by unit of the only level, twice."""
        found = self.code(self.body(torch.cat([given, made], 1)))
        return (self.decode(torch.cat([found.sample, given], 1)) - made).square().sum(1), found.by_unit, found.by_unit


class Hierarchical(nn.Module):
    """An autoencoder of two levels of latents, two layers with ReLU between any two."""

    def __init__(self, width: int, *, fixed: bool) -> None:
        super().__init__()
        below, above = LEVELS
        self.fixed = fixed
        self.encode, self.decode, self.prior = _layers(width, 2 * below), _layers(below, width), _layers(above, below)
        self.body, self.code = nn.Sequential(nn.Linear(below, HIDDEN), nn.ReLU()), VariationalBottleneck(HIDDEN, above)

    def losses(self, _: Tensor, made: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return squared errors ``(batch,)``, and divergences by unit of the first and of the second level."""
        mean, raw = self.encode(made).chunk(2, dim=1)
        deviation = torch.full_like(raw, NOISE) if self.fixed else nn.functional.softplus(raw) + 1e-6
        first = mean + deviation * torch.randn_like(deviation)
        above = self.code(self.body(first))
        apart = gaussian_rate(mean - self.prior(above.sample), deviation)
        return (self.decode(first) - made).square().sum(1), apart, above.by_unit


def trained(arm: str, beta: float, seed: int) -> Tensor:
    """Return the mean divergence, in nats, of each latent of a network with ReLU: of the last level."""
    torch.manual_seed(seed)
    model: Conditional | Hierarchical
    if arm in CONDITIONAL:
        given, made = (torch.from_numpy(one).float() for one in parts(arm))
        model, weights = Conditional(given.shape[1], made.shape[1]), (beta, 0.0)
    else:
        given = made = torch.from_numpy(digits()).float()
        model, weights = Hierarchical(made.shape[1], fixed=arm.endswith(FIXED)), (1.0, beta)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        rows = torch.randint(0, len(made), (BATCH,))
        error, below, above = model.losses(given[rows], made[rows])
        rates = weights[0] * below.sum(1) + weights[1] * above.sum(1)
        optimizer.zero_grad()
        torch.autograd.backward((error / (2 * DEVIATION**2) + rates).mean())
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return model.losses(given, made)[2].mean(0)


def alive(nats: Any) -> int:
    """Return how many latents carry at least so much that they count as alive."""
    return int((np.asarray(nats) >= LEAST).sum())


def predicted(arm: str, beta: float) -> tuple[int, int]:
    """Return how many latents the rule says are alive, on the first and on the last level."""
    if arm in CONDITIONAL:
        count = alive(conditional_latents(*parts(arm), LATENTS, beta=beta, decoder_deviation=DEVIATION).nats)
        return count, count
    noise = NOISE if arm.endswith(FIXED) else None
    levels = hierarchical_latents(
        digits(), LEVELS, betas=(1.0, beta), decoder_deviation=DEVIATION, encoder_deviation=noise
    )
    return alive(levels[0].nats), alive(levels[1].nats)


def measure(point: Point) -> Mapping[str, Any]:
    """Train one autoencoder and count its latents that are alive, beside what the rule says."""
    arm, beta = point.arm, point.level
    below, above = predicted(arm, beta)
    if not arm.startswith(LINEAR):
        return {"predicted": above, "measured": alive(trained(arm, beta, point.seed))}
    if arm in CONDITIONAL:
        return {"predicted": above, "measured": alive(linear_conditional(arm, beta, point.seed))}
    first, second = (alive(one) for one in linear_hierarchical(arm, beta, point.seed))
    return {"predicted": above, "measured": second, "predicted below": below, "measured below": first}


def counted(outcomes: Sequence[Outcome], arms: Sequence[str], name: str) -> Part:
    """Decide whether a linear autoencoder has as many latents alive as the rule says."""
    rule = "at every weight and seed as many latents are alive as the rule says; mixed: at some; does not hold: at none"
    own = [one for one in outcomes if one["arm"] in arms]
    if not own:
        return part_of(name, rule, UNTESTED)
    passed = [
        one["measured"] == one["predicted"] and one.get("measured below") == one.get("predicted below") for one in own
    ]
    counts = [one["predicted"] for one in own]
    verdict = HOLDS if all(passed) else MIXED if any(passed) else FAILS
    text = f"{sum(passed)} of {len(passed)}, the rule giving {min(counts)} to {max(counts)} alive"
    return part_of(name, rule, verdict, text)


def concordance(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """Return the share of pairs that the first orders and the second does not order the other way."""
    pairs = [(p, m) for p, m in combinations(zip(predicted, measured, strict=True), 2) if p[0] != m[0]]
    return sum((p[0] - m[0]) * (p[1] - m[1]) >= 0 for p, m in pairs) / len(pairs) if pairs else math.nan


def ordered(outcomes: Sequence[Outcome]) -> Part:
    """Decide whether the rule orders conditional autoencoders with ReLU."""
    rule = (
        f"in every seed, of the pairs of settings (what is given, and the weight) in which the rule counts unlike "
        f"numbers, at least {CONCORDANT:.0%} are not the other way round in networks with ReLU, and not all of these "
        f"count alike; mixed: at least {MOSTLY:.0%}; does not hold: otherwise"
    )
    name, shares, spans, texts = "order of networks with ReLU", [], [], []
    for seed in sorted({one["seed"] for one in outcomes}):
        own = [one for one in outcomes if one["seed"] == seed and one["arm"] in CONDITIONAL[len(ROWS) :]]
        if len(own) == len(ROWS) * len(BETAS):
            counts = [one["measured"] for one in own]
            shares.append(concordance([one["predicted"] for one in own], counts))
            spans.append(max(counts) - min(counts))
            off = np.mean([one["measured"] - one["predicted"] for one in own])
            texts.append(f"{shares[-1]:.0%} ({off:+.1f} latents in the mean)")
    if not shares:
        return part_of(name, rule, UNTESTED)
    least = min(shares) if min(spans) > 0 else 0.0
    verdict = HOLDS if least >= CONCORDANT else MIXED if least >= MOSTLY else FAILS
    return part_of(name, rule, verdict, ", ".join(texts))


def learnt(outcomes: Sequence[Outcome]) -> Part:
    """Decide whether learnt variances kill the second level of networks with ReLU as well."""
    rule = (
        "of networks with ReLU on two levels, at every weight at which the rule has second latents alive with fixed "
        "variances, fewer are alive with learnt ones, by more than twice the standard error of paired differences; "
        "mixed: at some; does not hold: at none"
    )
    name, passed, texts = "learnt variances, second level with ReLU", [], []
    for level in ABOVE_LEARNT:
        own, other = (of_arm(outcomes, f"{RELU}, {how}", level, "measured") for how in (LEARNT, FIXED))
        if len(own) < 2 or len(own) != len(other):
            return part_of(name, rule, UNTESTED)
        if predicted(f"{RELU}, {FIXED}", level)[1] == 0:
            continue
        gap, error = paired(own, other)
        passed.append(gap < 0 and gap < -2 * error)
        texts.append(f"{level:g}: {np.mean(own):.1f} against {np.mean(other):.1f}")
    verdict = HOLDS if all(passed) else MIXED if any(passed) else FAILS
    return part_of(name, rule, verdict, "; ".join(texts))


TRIALS = Trials(
    slug="posterior-collapse-cvae-hvae",
    claim=(
        "Which latents of a linear conditional or two-level variational autoencoder die follows from the spectrum of "
        "what the inputs leave unexplained, and from whether the encoder's variances are learnt; networks with ReLU "
        "are ordered alike."
    ),
    experiment=(
        f"scikit-learn's digits. Linear autoencoders are brought to the optimum of their exact expected loss from "
        f"random starts: conditional ones of {LATENTS} latents that are given two, four or six of eight rows, and ones "
        f"of {LEVELS[0]} and {LEVELS[1]} latents. Networks with ReLU ({HIDDEN} hidden units on each side) take {STEPS} "
        f"steps of Adam on the sampled loss. A latent is dead below {LEAST:g} nats."
    ),
    arms={
        **dict.fromkeys(CONDITIONAL, BETAS),
        **{arm: ABOVE if arm.endswith(FIXED) else ABOVE_LEARNT for arm in HIERARCHICAL},
    },
    seeds=(0, 1, 2),
    measure=measure,
    parts=lambda outcomes: [
        counted(outcomes, CONDITIONAL[: len(ROWS)], "linear, conditional"),
        counted(outcomes, HIERARCHICAL[:2], "linear, two levels"),
        ordered(outcomes),
        learnt(outcomes),
    ],
    columns=(
        Column("predicted", "alive by the rule", "{:.1f}"),
        Column("measured", "alive", "{:.1f}"),
        Column("predicted below", "first level, by the rule", "{:.1f}"),
        Column("measured below", "first level", "{:.1f}"),
    ),
    level="weight of the divergence",
    recipe={
        "deviation": DEVIATION, "noise": NOISE, "latents": LATENTS, "levels": list(LEVELS), "hidden": HIDDEN,
        "steps": STEPS, "batch": BATCH, "rate": RATE, "least": LEAST,
    },
    data=lambda: digest_of([digits()]),
)  # fmt: skip
