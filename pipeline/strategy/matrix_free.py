from __future__ import annotations

from dataclasses import dataclass

from pipeline.validation import check_bool, check_count

FEWEST_TRACE_PRODUCTS = 12


@dataclass(frozen=True)
class MatrixFree:
    """No matrix is computed or stored: spectra are estimated from products with it, each of which costs two to three
    gradients of all samples.

    `spectrum` says how many eigenpairs are wanted and how exactly; with spectrum=slq the density is estimated, too,
    with spectrum=topk it is not.

    num_density_vectors, num_density_steps: random vectors of the density, and products of each. num_trace_products:
    random vectors of the traces and of the Frobenius norm. keep_products: whether slow products are kept on the disk
    until the spectra of a step are whole, so that a run that is killed goes on with them. each_batch: whether the top
    eigenpairs, trace and norm of each batch's own matrix are estimated, too, and how far it is from the mean: about as
    many products with each batch as with all of them, by this process alone.

    Sources: see `pipeline.spectrum.eigenpairs`, `density` and `trace`.
    """

    num_density_vectors: int = 4
    num_density_steps: int = 48
    num_trace_products: int = 32
    keep_products: bool = True
    each_batch: bool = False

    def __post_init__(self) -> None:
        check_count("strategy.num_density_vectors", self.num_density_vectors)
        check_count("strategy.num_density_steps", self.num_density_steps, minimum=2)
        check_count("strategy.num_trace_products", self.num_trace_products, minimum=FEWEST_TRACE_PRODUCTS)
        check_bool("strategy.keep_products", self.keep_products)
        check_bool("strategy.each_batch", self.each_batch)
