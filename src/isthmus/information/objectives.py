"""What critics are trained on: losses of the scores of all pairs of a batch."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import softplus


def contrastive(scores: torch.Tensor) -> torch.Tensor:
    """InfoNCE, negative, both ways of normalising in the mean (van den Oord et al. 2018, equation 4)."""
    together = scores.diagonal()
    spread = 0.5 * (scores.logsumexp(1) + scores.logsumexp(0))
    found: torch.Tensor = (spread - together).mean() - np.log(len(scores))
    return found


def donsker_varadhan(scores: torch.Tensor) -> torch.Tensor:
    """``log E exp T - E T``, negative of the bound (Belghazi et al. 2018, equation 10)."""
    pairs = len(scores) * (len(scores) - 1)
    found: torch.Tensor = _apart(scores).logsumexp(0) - np.log(pairs) - scores.diagonal().mean()
    return found


def nguyen(scores: torch.Tensor) -> torch.Tensor:
    """``E exp(T - 1) - E T``, negative of the bound (Nguyen et al. 2010, equation 25)."""
    return (_apart(scores) - 1).exp().mean() - scores.diagonal().mean()


def jensen_shannon(scores: torch.Tensor) -> torch.Tensor:
    """Logistic loss of telling pairs drawn together from others; what SMILE trains on (Song and Ermon 2020)."""
    return softplus(-scores.diagonal()).mean() + softplus(_apart(scores)).mean()


def _apart(scores: torch.Tensor) -> torch.Tensor:
    size = len(scores)
    return scores.flatten()[1:].view(size - 1, size + 1)[:, :-1].flatten()
