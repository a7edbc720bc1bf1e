"""How the losses and matrices of a run's batches make up those of all their samples."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pipeline.aggregate import Weighting
from pipeline.config import Verify
from pipeline.errors import PipelineError
from pipeline.objective import Batch, Criterion, Objective, Params, num_terms
from pipeline.operator import LossTerms, UnknownReduction

log = logging.getLogger(__name__)


def reduction_of(objective: Objective, params: Params, batch: Batch) -> str:
    """What the criterion says, "mean" or "sum", or a trial on a batch finds; "mean" where it is neither."""
    try:
        return "sum" if LossTerms.of(objective, params, batch).is_sum else "mean"
    except UnknownReduction:
        return "mean"


def weighting_of_batches(criterion: Criterion, reduction: str, batches: Sequence[Batch]) -> Weighting:
    """By the terms that the losses of the batches are over."""
    terms = [_terms(criterion, reduction, batch) for batch in batches]
    counts = [batch.num_samples if each is None else each for each, batch in zip(terms, batches, strict=True)]
    return Weighting.of(counts, reduction)


def terms_attribute(criterion: Criterion, reduction: str, batch: Batch) -> dict[str, float]:
    """The attribute `num_terms` of a shard; none where batches are weighted by their samples, or added."""
    terms = _terms(criterion, reduction, batch)
    return {} if terms is None else {"num_terms": terms}


def check_batches(objective: Objective, params: Params, batches: Sequence[Batch], verify: Verify) -> None:
    """Refuse several batches whose losses do not make up that of all samples, or warn of them unless verify=error.

    Cost: six losses of each batch at most, and none where the criterion is one of PyTorch's or of `pipeline.criterion`.

    Raises:
        PipelineError: they do not, or no label of a batch counts.
    """
    if len(batches) == 1:
        return
    try:
        terms = LossTerms.of(objective, params, batches[0])
        for index, batch in enumerate(batches):
            if terms.weight(batch) == 0:
                raise PipelineError(
                    f"batch {index} has no label that counts, and so no mean loss and no matrix: choose a larger "
                    "data.batch_size, or strategy=matrix_free, which leaves it out."
                )
            terms.check(objective, params, batch)
    except UnknownReduction as error:
        if verify is Verify.error:
            raise PipelineError(
                f"{str(error).rstrip('.')} (data.batch_size=null makes one batch; verify=warn weights batches by their "
                "samples all the same)."
            ) from error
        log.warning(
            "%s Batches are weighted by their samples all the same, because verify is not error.", error
        )


def _terms(criterion: Criterion, reduction: str, batch: Batch) -> float | None:
    return num_terms(criterion, batch) if reduction == "mean" else None
