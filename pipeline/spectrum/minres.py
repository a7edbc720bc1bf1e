"""Minimal residuals (MINRES) for a few right sides side by side."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.spectrum.protocol import Array

LEAST = 1e-13  # of ‖A‖ ‖r‖: where ‖A r‖ is no larger, no x has a smaller residual


def minres(times: Callable[[Array], Array], b: Array, target: Array, max_steps: int) -> Array:
    """Approximate x of A x = b for each column of b, by the x in a Krylov space with the least ‖b − A x‖.

    Paige and Saunders 1975, doi:10.1137/0712047: Lanczos' recurrence, whose tridiagonal matrix is made triangular by a
    rotation a step. A column is done where the recurrence says ‖b − A x‖ ≤ target, where its Krylov space ends, where
    A (b − A x) is nothing but rounding (A is singular, and b not in its range), or after max_steps; it is multiplied no
    more. In exact arithmetic that residual is the true one; the caller looks.

    times: V ↦ A V, A symmetric. b: (P, m). target: (m,). Cost: a product a column and step. Memory: 7 (P, m) arrays.
    """
    x: Array = np.zeros_like(b)
    left = np.linalg.norm(b, axis=0)
    columns = np.flatnonzero(left > target)  # those at work; all that follows is of them alone
    left = left[columns]
    now, before = b[:, columns] / left, np.zeros((len(b), len(columns)))
    step_1, step_2 = np.zeros_like(before), np.zeros_like(before)  # the last two directions of x
    beta, delta_bar, epsilon = (np.zeros(len(columns)) for _ in range(3))
    cosine, sine, norm = -np.ones(len(columns)), np.zeros(len(columns)), np.zeros(len(columns))
    for _ in range(max_steps):
        if not len(columns):
            break
        image = times(now) - beta * before
        alpha = (now * image).sum(axis=0)
        image -= alpha * now
        next_beta = np.linalg.norm(image, axis=0)
        delta, gamma_bar = cosine * delta_bar + sine * alpha, sine * delta_bar - cosine * alpha
        gamma = np.hypot(gamma_bar, next_beta)
        norm = np.maximum(norm, np.hypot(alpha, np.hypot(beta, next_beta)))
        is_least = np.hypot(gamma_bar, cosine * next_beta) <= LEAST * norm
        ends = gamma <= np.finfo(float).eps * np.hypot(
            alpha, beta
        )  # nothing of A is left that changes the residual
        safe = np.where(ends, 1.0, gamma)
        direction = (now - epsilon * step_2 - delta * step_1) / safe
        epsilon, delta_bar = sine * next_beta, -cosine * next_beta
        cosine, sine = gamma_bar / safe, next_beta / safe
        x[:, columns] += np.where(ends, 0.0, cosine * left) * direction
        left = np.where(ends, left, sine * left)
        goes_on = ~ends & ~is_least & (left > target[columns]) & (next_beta > 0)
        step_1, step_2 = direction[:, goes_on], step_1[:, goes_on]
        now, before = (image / np.where(next_beta > 0, next_beta, 1.0))[:, goes_on], now[:, goes_on]
        beta, delta_bar, epsilon = next_beta[goes_on], delta_bar[goes_on], epsilon[goes_on]
        cosine, sine, left, columns = cosine[goes_on], sine[goes_on], left[goes_on], columns[goes_on]
        norm = norm[goes_on]
    return x
