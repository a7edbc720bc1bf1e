"""Laws of curvature matrices and published results: each is measured on nets, and compared with what is known of it."""

from pipeline.law.attention_scales import AttentionScales
from pipeline.law.batch_extremes import BatchExtremes
from pipeline.law.block_spectra import BlockSpectra
from pipeline.law.catapult import Catapult
from pipeline.law.class_blocks import ClassBlocks
from pipeline.law.class_outliers import ClassOutliers
from pipeline.law.deep_linear_rank import DeepLinearRank
from pipeline.law.duality import Duality
from pipeline.law.edge_of_stability import EdgeOfStability
from pipeline.law.fisher_width import FisherWidth
from pipeline.law.lanczos_density import LanczosDensity
from pipeline.law.marchenko_pastur import MarchenkoPastur
from pipeline.law.optimizer_edges import OptimizerEdges
from pipeline.law.piecewise_linear import PiecewiseLinear
from pipeline.law.protocol import Law
from pipeline.law.stage import measure
from pipeline.law.symmetries import Symmetries
from pipeline.law.tiny_subspace import TinySubspace
