"""What a run leaves behind, typed: the contract between those who write results and those who read them."""

from pipeline.results.evolution import (
    NO_LIMIT,
    StabilityLimit,
    common_densities,
    limits_of,
    linear_width,
    needs_logarithmic_axis,
    overlaps,
    stability_limit,
)
from pipeline.results.law_file import Check, LawFile, Outcome, Panel, Series
from pipeline.results.matrix_eigenvalues import eigenvalues, last_spectra
from pipeline.results.number_format import UNKNOWN, matrix_name, number, short
from pipeline.results.quantities import (
    BATCH_TABLE,
    COLUMNS,
    FIRST_CHARTS,
    QUANTITIES,
    STEP_CHARTS,
    STEP_TABLE,
    SWEEP_CHARTS,
    TABLE,
    TILES,
    Quantity,
)
from pipeline.results.run import Run, open_run, store_of
from pipeline.results.second_moments import SecondMoments, second_moments_at
from pipeline.results.spectra_file import (
    BatchSpectra,
    Density,
    DistributionBand,
    LandscapeFile,
    LayerBlocks,
    Lines,
    MeanSpectrum,
    ModuleBlocks,
    Plane,
    SpectraFile,
)
