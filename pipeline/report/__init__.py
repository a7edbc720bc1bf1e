"""From results to summary, figures and page."""

from pipeline.report.charts.evolution import step_axis
from pipeline.report.page.page import Array, Arrays, Chart, render, thinned_ranks, value_scale
from pipeline.report.recorder import RunRecorder
from pipeline.report.report import make_report
from pipeline.report.tables import column_heads
