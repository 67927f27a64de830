"""Dead latents: the rules against linear autoencoders trained on real covariances, by their exact expected loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from isthmus.errors import BadInput
from isthmus.information.collapse import collapse_alarm, conditional_latents, hierarchical_latents, vae_latents
from isthmus.information.training.bottleneck import VariationalBottleneck, gaussian_rate


def digits() -> np.ndarray:
    """Return scikit-learn's digits, averaged to four by two pixels."""
    images = load_digits().images.reshape(-1, 4, 2, 2, 4).mean((2, 4))
    return images.reshape(len(images), 8) / 3


def covariance(data: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.cov(data.T, bias=True))


def optimum(shapes: dict[str, tuple[int, ...]], loss: object, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    found = {name: (0.3 * torch.randn(shape, dtype=torch.float64)).requires_grad_() for name, shape in shapes.items()}
    optimizer = torch.optim.LBFGS(found.values(), max_iter=400, line_search_fn="strong_wolfe", tolerance_change=1e-13)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        value: torch.Tensor = loss(**found)  # type: ignore[operator]
        value.backward()
        return value

    optimizer.step(step)
    return {name: one.detach() for name, one in found.items()}


def trained(left: torch.Tensor, latents: int, beta: float, deviation: float, prior: float = 1.0) -> torch.Tensor:
    """Return the mean divergence of each latent of a linear autoencoder of data with a covariance, nats."""

    def loss(u: torch.Tensor, w: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        moments = w @ left @ w.T + torch.diag((2 * s).exp())
        error = left.trace() - 2 * (u @ w @ left).trace() + (u @ moments @ u.T).trace()
        rate = 0.5 * (moments.diagonal() / prior**2 - 1 - 2 * s + 2 * math.log(prior)).sum()
        return error / (2 * deviation**2) + beta * rate

    width = len(left)
    found = optimum({"u": (width, latents), "w": (latents, width), "s": (latents,)}, loss)
    mean = (found["w"] @ left @ found["w"].T).diagonal()
    return 0.5 * ((mean + (2 * found["s"]).exp()) / prior**2 - 1 - 2 * found["s"] + 2 * math.log(prior))


@pytest.mark.parametrize("beta", [0.3, 1.2, 2.4, 30.0])
def test_latents_of_a_linear_autoencoder_of_digits(beta: float) -> None:
    data = digits()
    rule = vae_latents(data, 6, beta=beta, decoder_deviation=0.4)
    measured = trained(covariance(data), 6, beta, 0.4, prior=1.7)
    assert rule.alive == int((measured > 0.01).sum())
    assert float(measured.sum()) == pytest.approx(rule.nats.sum(), rel=1e-3, abs=1e-3)


def test_the_sweep_passes_from_all_alive_to_none() -> None:
    counts = [vae_latents(digits(), 6, beta=beta, decoder_deviation=0.4).alive for beta in (0.3, 1.2, 2.4, 30)]
    assert counts == sorted(counts, reverse=True)
    assert (counts[0], counts[-1]) == (6, 0)
    assert len(set(counts)) >= 3


@pytest.mark.parametrize("beta", [0.3, 1.0, 3.0])
def test_latents_of_a_conditional_autoencoder_that_completes_digits(beta: float) -> None:
    """The upper half is given, the lower one made; decoder and encoder see both where they may."""
    data = digits()
    x, y = data[:, :4], data[:, 4:]
    rule = conditional_latents(x, y, 3, beta=beta, decoder_deviation=0.4)
    whole, inner, outer = covariance(data), covariance(x), covariance(y)
    cross = whole[:4, 4:]

    def loss(u: torch.Tensor, t: torch.Tensor, w: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        reads = torch.cat([t, torch.zeros(4, 4)], 1) + u @ w - torch.cat([torch.zeros(4, 4), torch.eye(4)], 1)
        error = (reads @ whole @ reads.T).trace() + (u.square() * (2 * s).exp()).sum()
        moments = (w @ whole @ w.T).diagonal() + (2 * s).exp()
        return error / (2 * 0.4**2) + beta * 0.5 * (moments - 1 - 2 * s).sum()

    found = optimum({"u": (4, 3), "t": (4, 4), "w": (3, 8), "s": (3,)}, loss)
    moments = (found["w"] @ whole @ found["w"].T).diagonal() + (2 * found["s"]).exp()
    measured = 0.5 * (moments - 1 - 2 * found["s"])
    assert rule.alive == int((measured > 0.01).sum())
    assert float(measured.sum()) == pytest.approx(rule.nats.sum(), rel=1e-3, abs=1e-3)
    left = np.linalg.eigvalsh((outer - cross.T @ torch.linalg.solve(inner, cross)).numpy())[::-1][:3]
    np.testing.assert_allclose(rule.variances, left, rtol=1e-8)


def test_outputs_that_inputs_explain_leave_latents_dead() -> None:
    data = digits()
    assert conditional_latents(data, data @ np.ones((8, 3)), 3, decoder_deviation=1e-3).alive == 0
    noise = np.random.default_rng(0).normal(size=data.shape)
    assert (
        conditional_latents(noise, data, 8, decoder_deviation=0.4).alive
        == vae_latents(data, 8, decoder_deviation=0.4).alive
    )


@pytest.mark.parametrize(
    ("fixed", "betas"),
    [
        (0.5, (1.0, 0.1)),
        (0.5, (1.0, 0.5)),
        (0.5, (1.0, 1.0)),
        (0.5, (1.0, 8.0)),
        (None, (1.0, 1.0)),
        (None, (1.0, 8.0)),
    ],
)
def test_both_levels_of_a_hierarchical_autoencoder(fixed: float | None, betas: tuple[float, float]) -> None:
    data, (below, above), deviation, prior = digits(), (4, 3), 0.4, 1.2
    left = covariance(data)
    first, second = hierarchical_latents(
        data, (below, above), betas=betas, decoder_deviation=deviation, prior_deviation=prior, encoder_deviation=fixed
    )

    def parts(w: torch.Tensor, s: torch.Tensor, v: torch.Tensor, r: torch.Tensor) -> tuple[torch.Tensor, ...]:
        noise = torch.full((below,), fixed**2, dtype=torch.float64) if fixed else (2 * s).exp()
        lower = w @ left @ w.T + torch.diag(noise)
        return noise, lower, v @ lower @ v.T + torch.diag((2 * r).exp())

    def loss(**found: torch.Tensor) -> torch.Tensor:
        u, t = found.pop("u"), found.pop("t")
        noise, lower, upper = parts(**found)
        error = left.trace() - 2 * (u @ found["w"] @ left).trace() + (u @ lower @ u.T).trace()
        apart = (lower - 2 * t @ found["v"] @ lower + t @ upper @ t.T).trace() / prior**2
        rate = 0.5 * (apart - below - (noise / prior**2).log().sum())
        rate_above = 0.5 * (upper.trace() - above - 2 * found["r"].sum())
        return error / (2 * deviation**2) + betas[0] * rate + betas[1] * rate_above

    shapes = {
        "u": (16, below),
        "w": (below, 8),
        "s": (below,),
        "t": (below, above),
        "v": (above, below),
        "r": (above,),
    }
    best = min((optimum(shapes, loss, seed) for seed in range(2)), key=lambda one: float(loss(**one)))
    own = {name: best[name] for name in ("w", "s", "v", "r")}
    noise, lower, upper = parts(**own)
    unseen = own["v"] @ torch.diag(noise) @ own["v"].T + torch.diag((2 * own["r"]).exp())
    carried = 0.5 * (torch.logdet(lower) - noise.log().sum()), 0.5 * (torch.logdet(upper) - torch.logdet(unseen))
    if fixed is None and betas[0] == betas[1]:
        # Any width of the first level is as good here: only what it carries is determined.
        assert float(carried[0]) == pytest.approx(first.nats.sum(), rel=1e-3)
        return
    for measured, rule in zip(carried, (first, second), strict=True):
        assert float(measured) == pytest.approx(rule.nats.sum(), rel=2e-3, abs=2e-3)


def test_learnt_variances_kill_the_second_level() -> None:
    data = digits()
    first, second = hierarchical_latents(data, (4, 3), betas=(1.0, 1.0), decoder_deviation=0.4)
    assert (first.alive, second.alive) == (vae_latents(data, 4, decoder_deviation=0.4).alive, 0)
    kept = hierarchical_latents(data, (4, 3), betas=(1.0, 0.1), decoder_deviation=0.4, encoder_deviation=0.5)
    assert kept[1].alive > 0


def test_an_alarm() -> None:
    by_unit = torch.zeros(5, 3, 4)
    by_unit[..., 1] = 2.0
    found = collapse_alarm(by_unit)
    assert (found.dead, found.message) == ((0, 2, 3), None)
    assert found.nats == (0, 2, 0, 0)
    assert "1 of 4 units are alive, 2 expected" in (collapse_alarm(by_unit, expected=2).message or "")
    torch.manual_seed(0)
    layer = VariationalBottleneck(6, 3)
    with torch.no_grad():
        layer.encode.weight.zero_()
        layer.encode.bias.copy_(torch.tensor([0.0, 0, 0, *[math.log(math.e - 1)] * 3]))
    collapsed = layer(torch.randn(20, 6)).by_unit
    torch.testing.assert_close(collapsed, gaussian_rate(torch.zeros(20, 3), torch.ones(20, 3)), atol=1e-5, rtol=0)
    assert "0 of 3 units are alive" in (collapse_alarm(collapsed).message or "")


def test_latents_beyond_the_data_are_dead() -> None:
    data = np.random.default_rng(0).normal(size=(100, 2))
    found = vae_latents(data, 4, decoder_deviation=0.1)
    assert found.alive == 2
    assert found.variances[2:].tolist() == [0, 0]


def test_bad_input() -> None:
    data = digits()
    for call, words in (
        (lambda: vae_latents(data, 0), "latents 0"),
        (lambda: vae_latents(data, 2, beta=-1.0), "beta -1"),
        (lambda: vae_latents(data[0], 2), "data: of shape"),
        (lambda: conditional_latents(data, data[:5], 2), "give pairs"),
        (lambda: hierarchical_latents(data, (2, 3)), "wider than the first"),
        (lambda: hierarchical_latents(data, (3, 2), betas=(1.0, 0.5)), "no lower end"),
        (lambda: hierarchical_latents(data, (3, 2), encoder_deviation=0.0), "encoder deviation 0"),
        (lambda: collapse_alarm(torch.zeros(3)), "give (batch"),
        (lambda: collapse_alarm(torch.full((2, 2), math.nan)), "unit 0"),
    ):
        with pytest.raises(BadInput, match=words.replace("(", r"\(")):
            call()
