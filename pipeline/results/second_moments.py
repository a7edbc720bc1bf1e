"""What Adam keeps of the gradient's size, beside a checkpoint, and the diagonal by which it divides its steps."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import PipelineError
from pipeline.layout import Layout
from pipeline.shards import Array, damaged, read_array_file, write_array_file

log = logging.getLogger(__name__)
SCALARS = ("beta1", "beta2", "epsilon", "num_updates")


@dataclass(frozen=True)
class SecondMoments:
    """The second moments v of Adam after a number of updates: `checkpoints/step-….adam.h5`.

    values: v of each parameter by its name, in the parameter's shape, not corrected for the start at zero.
    beta1, beta2, epsilon: of Adam.
    """

    values: Mapping[str, Array]
    beta1: float
    beta2: float
    epsilon: float
    num_updates: int

    def preconditioner(self, layout: Layout) -> Array | None:
        """The diagonal of P in Adam's step w ← w − η P⁻¹ m, (P,) by the rows of a matrix; None if a parameter lacks.

        (1 − β₁ᵗ) (√(v / (1 − β₂ᵗ)) + ε) after t updates, where m is the running mean of the gradient as Adam keeps it.
        Source: Cohen et al. 2022, arXiv:2207.14484.
        """
        sizes = dict(zip(layout.names, layout.sizes, strict=True))
        lacking = [
            name for name, n in sizes.items() if name not in self.values or self.values[name].size != n
        ]
        if lacking:
            log.warning(
                "no λmax of the preconditioned matrix: Adam has no moments of %s.", ", ".join(lacking)
            )
            return None
        moments = np.concatenate([np.ravel(self.values[name]) for name in sizes]).astype(np.float64)
        corrected = moments / (1 - self.beta2**self.num_updates)
        diagonal: Array = (1 - self.beta1**self.num_updates) * (np.sqrt(corrected) + self.epsilon)
        return diagonal

    @property
    def fingerprint(self) -> str:
        """Of all that is in it: 16 hexadecimal digits."""
        digest = hashlib.sha256(repr([getattr(self, name) for name in SCALARS]).encode())
        for name, values in sorted(self.values.items()):
            digest.update(name.encode() + np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()[:16]

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_array_file(path, {name: getattr(self, name) for name in SCALARS}, self.values)

    @classmethod
    def read(cls, path: Path) -> SecondMoments:
        """Read what `write` wrote.

        Raises:
            DamagedFile: it is not what was written, or lacks a number.
        """
        found = read_array_file(path)
        try:
            return cls(found.arrays, **{name: found.attrs[name] for name in SCALARS})
        except KeyError as missing:
            raise damaged(path, f"it has no {missing.args[0]}") from missing


def second_moments_at(path: Path) -> SecondMoments | None:
    """What Adam has left there; None of another training, and with a warning where the file is damaged."""
    try:
        return SecondMoments.read(path) if path.exists() else None
    except PipelineError as error:
        log.warning("%s Until then there is no λmax of the preconditioned matrix.", error)
        return None
