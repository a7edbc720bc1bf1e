"""The chart of bounds of a distribution of eigenvalues."""

import numpy as np
from support.report_cases import estimated, spectra

from pipeline.report.charts.spectrum import distribution_band
from pipeline.report.figures import picture
from pipeline.report.page.page import Arrays


def test_the_band_has_the_bounds_of_the_file():
    file, arrays = estimated(), Arrays()
    chart = distribution_band({file.step: file}, arrays)
    low, high = chart.traces
    for trace, bound in ((low, file.distribution.low), (high, file.distribution.high)):
        points = np.repeat(file.distribution.points, 2)[1:]
        np.testing.assert_allclose(arrays.get(trace["x"]), points, rtol=2e-5, atol=1e-30)
        np.testing.assert_allclose(arrays.get(trace["y"]), np.repeat(bound, 2)[:-1], rtol=2e-5, atol=1e-30)
    (axes,) = picture([chart], arrays, {"step": str(file.step)}, "").axes
    assert len(axes.collections) == 1  # what lies between the bounds


def test_a_stored_matrix_has_none():
    assert distribution_band({120: spectra()}, Arrays()) is None
