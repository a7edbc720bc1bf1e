"""From shards to a spectra file, by Dask."""

from pipeline.aggregate.moments import Weighting
from pipeline.aggregate.stage import aggregate
