"""The stage that makes matrices: checks before the work, matrices, certificates, cost estimates, the loss landscape."""

from pipeline.compute.dense import hessian, layer_hessians, sample_hessians
from pipeline.compute.loss_landscape import compute_slices
from pipeline.compute.matrix_free import estimate_spectra
from pipeline.compute.preflight import check_resources
from pipeline.compute.product_workers import ProductWorkers
from pipeline.compute.stage import compute
from pipeline.compute.strategy_choice import settle_strategy
from pipeline.compute.worker import processes_of
