"""From shards to a spectra file, by Dask."""

from pipeline.aggregate.decomposition import LARGEST
from pipeline.aggregate.matrix_views import Scaled
from pipeline.aggregate.moments import AT_ONCE, Weighting, counts_of, weighting_of
from pipeline.aggregate.partial_results import CachedMatrix, PartialResults
from pipeline.aggregate.spectrum_choice import SpectrumChoice, choose, sizes_of
from pipeline.aggregate.stage import TILES_PER_TASK, aggregate
