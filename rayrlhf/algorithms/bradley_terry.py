"""Scores from pairwise comparisons."""

import math

import numpy as np
from jaxtyping import Float64

PRIOR_STD = 3.0
"""Of the scores, in nats: weak beside a few comparisons, and what keeps a response that always wins finite."""

_MOST_STEPS = 200
_TOLERANCE = 1e-10
"""Of the gradient, in comparisons."""


def bradley_terry(wins: Float64[np.ndarray, "n n"], *, prior_std: float = PRIOR_STD) -> Float64[np.ndarray, " n"]:
    """The most probable scores s [n] where i beats j with probability 1 / (1 + exp(s_j - s_i)) (Bradley and Terry 1952).

    `wins[i, j]` is how often i beat j, in fractions too: a comparison with probability p counts p for one and 1 - p for the
    other. The prior of each score is a normal distribution around 0, so that the scores have mean 0. Found by Newton's
    method with the damped step of Sun and Tran-Dinh (2019) for generalised self-concordant functions, which converges from
    anywhere.
    """
    games = wins + wins.T
    scores = np.zeros(len(wins))
    for _ in range(_MOST_STEPS):
        expected = _logistic(scores[:, None] - scores[None, :])
        gradient = (wins - games * expected).sum(1) - scores / prior_std**2
        if np.abs(gradient).max(initial=0.0) < _TOLERANCE * max(1.0, float(games.sum())):
            return scores
        curvature = games * expected * (1.0 - expected)
        information = np.diag(curvature.sum(1) + 1.0 / prior_std**2) - curvature
        step = np.linalg.solve(information, gradient)
        size = math.sqrt(2.0) * float(np.linalg.norm(step))
        scores = scores + step * (math.log1p(size) / size)
    raise AssertionError("Newton's method did not converge")


def _logistic(x: Float64[np.ndarray, "n n"]) -> Float64[np.ndarray, "n n"]:
    return 0.5 * (1.0 + np.tanh(0.5 * x))
