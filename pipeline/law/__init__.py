"""Laws of curvature matrices and published results: each is measured on nets, and compared with what is known of it."""

from pipeline.law.duality import Duality
from pipeline.law.protocol import Law
from pipeline.law.stage import measure
