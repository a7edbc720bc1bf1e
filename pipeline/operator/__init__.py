"""Products with a curvature matrix that is never formed."""

from pipeline.operator.batches import Batches
from pipeline.operator.curvature_operator import CurvatureOperator, curvature_operator
from pipeline.operator.loss_terms import LossTerms

__all__ = ["Batches", "CurvatureOperator", "LossTerms", "curvature_operator"]
