"""What is extracted from a stored symmetric matrix: eigenvalues, top eigenvectors, density, numbers."""

from pipeline.spectrum.auto import Auto
from pipeline.spectrum.batch_moments import BatchMoments, batch_moments
from pipeline.spectrum.cost import SPEEDUP, Rates
from pipeline.spectrum.density import DensityGrid, density_of, estimate, fit_grid, resolution_of
from pipeline.spectrum.distribution import SpectralDistribution, bytes_of_recurrences
from pipeline.spectrum.distribution import density as distribution_of
from pipeline.spectrum.exact import Exact, eigenvalues_of, live_rows
from pipeline.spectrum.extremal_pairs import Eigenpairs, bytes_of_pairs, columns_of_basis, eigenpairs
from pipeline.spectrum.linear_systems import Solution, solve
from pipeline.spectrum.protocol import (
    Array,
    DenseMatrix,
    ProductMatrix,
    Quadrature,
    Spectrum,
    SpectrumMethod,
    SymmetricMatrix,
    Watch,
    real_array,
)
from pipeline.spectrum.random_traces import Diagonal, Estimate, Traces, diagonal, trace
from pipeline.spectrum.slq import SLQ
from pipeline.spectrum.summary import (
    cosines,
    eigenspace_overlap,
    eigenspace_overlaps,
    share_in_eigenspace,
    sign_threshold,
    summarize,
)
from pipeline.spectrum.topk import TopK
