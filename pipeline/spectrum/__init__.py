"""What is extracted from a stored symmetric matrix: eigenvalues, top eigenvectors, density, numbers."""

from pipeline.spectrum.exact import Exact
from pipeline.spectrum.protocol import Spectrum, SpectrumMethod, SymmetricMatrix
from pipeline.spectrum.slq import SLQ
from pipeline.spectrum.topk import TopK

__all__ = ["SLQ", "Exact", "Spectrum", "SpectrumMethod", "SymmetricMatrix", "TopK"]
