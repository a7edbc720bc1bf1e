"""Products with a curvature matrix that is never formed, and Gram matrices in its place."""

from pipeline.operator.batch_operators import BatchOperators, operators_of_batches
from pipeline.operator.batches import Batches
from pipeline.operator.curvature_operator import COLUMNS_PER_PASS, CurvatureOperator, curvature_operator
from pipeline.operator.gram_spectrum import GramSpectrum, gram_spectrum
from pipeline.operator.loss_terms import LossTerms, UnknownReduction
from pipeline.operator.partial_sums import Part, PartialSum, parts_of, split_evenly, sum_of_parts
