"""What an aggregation that is cut short leaves to the next one: sums, spectra of parts, and products of slow passes.

Lanczos is a deterministic function of the products that it is given. So no state of it is kept but these: an iteration
that is taken up again runs from its beginning with the products on disk in place of passes, and goes on bit for bit. A
product is (P, m) numbers a pass, where the state is the whole basis.
"""

from __future__ import annotations

import logging
import shutil
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.aggregate.moments import TileSums
from pipeline.errors import PipelineError
from pipeline.shards import Array, ArrayFile, read_array_file, write_array_file
from pipeline.spectrum import ProductMatrix, Quadrature, Spectrum

SLOW = 2.0  # seconds from which a result is worth a file
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartialResults:
    """Files in a folder of their own, which goes when the spectra file is whole.

    identity: of all that the results depend on; files of another identity count for nothing.
    """

    folder: Path
    identity: str

    def load(self, name: str) -> ArrayFile | None:
        """What was saved under this name; None where there is nothing, or nothing sound."""
        path = self.folder / f"{name}.h5"
        try:
            found = read_array_file(path) if path.exists() else None
        except PipelineError:  # damaged: it is made again
            return None
        return found if found is not None and found.attrs.get("identity") == self.identity else None

    def save(self, name: str, attrs: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        write_array_file(self.folder / f"{name}.h5", {**attrs, "identity": self.identity}, arrays)

    def load_sums(self, moments: TileSums, ends: Sequence[int]) -> int:
        """Put saved sums over tiles into `moments`; gives the number of groups of tiles that are in them.

        ends: the number of tiles up to the end of each group. Sums up to another number count for nothing.
        """
        found = self.load("sums")
        if found is None or found.attrs["num_tiles"] not in ends:
            return 0
        for field_ in fields(TileSums):
            setattr(moments, field_.name, found.arrays[field_.name])
        return ends.index(found.attrs["num_tiles"]) + 1

    def save_sums(self, moments: TileSums, num_tiles: int) -> None:
        arrays = {field_.name: getattr(moments, field_.name) for field_ in fields(TileSums)}
        self.save("sums", {"num_tiles": num_tiles}, arrays)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class CachedMatrix:
    """A matrix whose slow products are kept, and taken from the disk where the same vectors come again.

    slow: seconds from which a product is worth a file; None for SLOW. num_taken: passes whose product was on the disk.
    """

    matrix: ProductMatrix
    unfinished: PartialResults
    name: str
    slow: float | None = None
    num_taken: int = field(default=0, init=False)
    _num_products: int = field(default=0, init=False)

    @property
    def num_rows(self) -> int:
        return self.matrix.num_rows

    def __getattr__(self, name: str) -> Any:
        """What an operator has besides: its layout, its dtype and device, how many vectors it multiplies at once."""
        if name in {"layout", "columns_per_pass", "dtype", "device", "rounding"}:
            return getattr(self.matrix, name)
        raise AttributeError(name)

    def dense(self) -> Array:
        """All entries of a stored matrix."""
        dense: Array = self.matrix.dense()  # type: ignore[attr-defined]
        return dense

    def matvec(self, vectors: Any) -> Any:
        """The product, a tensor of a tensor; each call is one pass, or none."""
        name = f"{self.name}/pass-{self._num_products:05d}"
        self._num_products += 1
        attrs = {"vectors": zlib.crc32(_numbers(vectors).data)}
        found = self.unfinished.load(name)
        if found is not None and found.attrs["vectors"] == attrs["vectors"]:
            self.num_taken += 1
            log.log(
                logging.INFO if self.num_taken == 1 else logging.DEBUG,
                "%s: pass %d is on the disk already, and taken from there.",
                *(self.name, self._num_products),
            )
            return _like(vectors, found.arrays["product"])
        start = time.monotonic()
        product = _numbers(self.matrix.matvec(vectors))
        if time.monotonic() - start >= (SLOW if self.slow is None else self.slow):
            self.unfinished.save(name, attrs, {"product": product})
        return _like(vectors, product)


def _numbers(vectors: Any) -> Array:
    """Of an array or a tensor, side by side in memory."""
    return np.ascontiguousarray(vectors.detach().cpu().numpy() if hasattr(vectors, "detach") else vectors)


def _like(vectors: Any, product: Array) -> Any:
    return vectors.new_tensor(product) if hasattr(vectors, "new_tensor") else product


def remembered(unfinished: PartialResults, name: str, make: Callable[[], Spectrum]) -> Spectrum:
    """The spectrum that was saved under this name, or the one that is made now, and saved if that was slow."""
    found = unfinished.load(name)
    if found is not None:
        return _spectrum(found)
    start = time.monotonic()
    spectrum = make()
    if time.monotonic() - start >= SLOW:
        unfinished.save(name, *_encoded(spectrum))
    return spectrum


def _encoded(spectrum: Spectrum) -> tuple[dict[str, Any], dict[str, Array]]:
    attrs = {"complete": spectrum.complete, "num_passes": spectrum.num_passes}
    names = ("eigenvalues", "top_eigenvalues", "top_eigenvectors", "residuals")
    arrays = {name: getattr(spectrum, name) for name in names}
    prefix, quadrature = "quadrature", spectrum.quadrature
    while quadrature is not None:
        arrays |= {f"{prefix}/nodes": quadrature.nodes, f"{prefix}/weights": quadrature.weights}
        attrs[f"{prefix}/num_rows"] = quadrature.num_rows
        prefix, quadrature = f"{prefix}/earlier", quadrature.earlier
    return attrs, arrays


def _spectrum(file: ArrayFile) -> Spectrum:
    return Spectrum(
        eigenvalues=file.arrays["eigenvalues"],
        top_eigenvalues=file.arrays["top_eigenvalues"],
        top_eigenvectors=file.arrays["top_eigenvectors"],
        residuals=file.arrays["residuals"],
        complete=bool(file.attrs["complete"]),
        quadrature=_quadrature(file, "quadrature"),
        num_passes=int(file.attrs["num_passes"]),
    )


def _quadrature(file: ArrayFile, prefix: str) -> Quadrature | None:
    if f"{prefix}/nodes" not in file.arrays:
        return None
    return Quadrature(
        nodes=file.arrays[f"{prefix}/nodes"],
        weights=file.arrays[f"{prefix}/weights"],
        num_rows=int(file.attrs[f"{prefix}/num_rows"]),
        earlier=_quadrature(file, f"{prefix}/earlier"),
    )
