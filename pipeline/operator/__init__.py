"""Products with a curvature matrix that is never formed."""

from pipeline.operator.curvature_operator import CurvatureOperator, curvature_operator

__all__ = ["CurvatureOperator", "curvature_operator"]
