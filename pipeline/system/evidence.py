"""What a file was made of beside its config: the samples, what the model makes of them, and what the criterion says.

A config names classes and files, not what is in them. So checkpoints and shards carry evidence, which is compared
whenever one of them is gone on with. Samples are compared by a checksum. What floating-point numbers have made differs
in its last digits from one machine to another, so it is compared within the `agreement` that the dtype allows:

    train_hash, test_hash    all training samples, all test samples ("" without any)
    data_hash                those of a batch; of a mean, a checksum of its batches' checksums
    first_outputs            of the model, for the first samples that all files of a checkpoint share: their root mean
                             square, and their products with fixed random vectors
    first_slope              the root mean square of the derivative of one such product by the weights
    first_losses             the criterion's value, and that for outputs of the sample before in place of one's own
    batch_…                  the same for the samples of a batch
    agreement                relative, of all of these

No torch here: aggregation compares shards too. `objective/observation.py` makes the evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, isnan
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError

CHECKSUMS = {
    "train_hash": "its training samples",
    "test_hash": "its test samples",
    "data_hash": "its samples",
}
# What the shards of one step have in common.
SHARED = ("train_hash", "first_outputs", "first_slope", "first_losses", "agreement")
OF_KINKS = 100  # times less alike: which side of a kink one sample is on moves a slope, and no output
OF_NOTHING = 1e-2  # of the outputs' size: a loss that is small beside it is known as exactly as one so large

Evidence = Mapping[str, Any]


class OtherExperiment(PipelineError):
    """What is there was made with other samples, by another model or criterion than those at hand.

    source: what is there. what: which of them, such as "other data"; where: in what they differ.
    """

    def __init__(self, source: Path, what: str, where: str) -> None:
        super().__init__(source, what, where)  # all of them, so that another process can raise it here
        self.source, self.what, self.where = source, what, where

    def __str__(self) -> str:
        return (
            f"{self.source} was made with {self.what} than this run has ({self.where} differ): "
            "one folder holds one experiment; choose another with hydra.run.dir=FOLDER."
        )


def check_evidence(source: Path, recorded: Evidence, current: Evidence) -> None:
    """Compare what a file or folder tells of its making with what this run has; what one of them lacks is let pass.

    Raises:
        OtherExperiment: data, model or criterion differ, in one line that says which.
    """
    if differs := difference(recorded, current):
        raise OtherExperiment(source, *differs)


def difference(one: Evidence, other: Evidence) -> tuple[str, str] | None:
    """Which of data, model and criterion differs, and in what; None where nothing does that both tell."""
    for key, words in CHECKSUMS.items():
        if key in one and key in other and one[key] != other[key]:
            return "other data", words
    agreement = max(float(each.get("agreement", 0.0)) for each in (one, other))
    kinds = [kind for kind in ("first", "batch") if all(f"{kind}_outputs" in each for each in (one, other))]
    for kind in kinds:
        outputs = one[f"{kind}_outputs"], other[f"{kind}_outputs"]
        if not _agree(*outputs, agreement * _size(*outputs)):
            return "another model", "its outputs for the same weights and samples"
    for key in (f"{kind}_slope" for kind in kinds):
        if key not in one or key not in other:  # a checkpoint's
            continue
        slopes = [one[key]], [other[key]]
        if not _agree(*slopes, OF_KINKS * agreement * _size(*slopes)):
            return "another model", "derivatives of its outputs for the same weights and samples"
    for kind in kinds:
        losses = one[f"{kind}_losses"], other[f"{kind}_losses"]
        least = OF_NOTHING * max(each[f"{kind}_outputs"][0] for each in (one, other))
        if not _agree(*losses, agreement * max(_size(*losses), least)):
            return "another criterion", "its values for the same outputs and targets"
    return None


def shared_evidence(attrs: Evidence) -> dict[str, Any]:
    """The evidence that a shard has in common with the others of its step, and with their mean."""
    return {key: attrs[key] for key in SHARED if key in attrs}


def _agree(one: Sequence[float], other: Sequence[float], tolerance: float) -> bool:
    return all(
        a == b or (isnan(a) and isnan(b)) or abs(a - b) <= tolerance for a, b in zip(one, other, strict=True)
    )


def _size(*numbers: Sequence[float]) -> float:
    return max((abs(number) for each in numbers for number in each if isfinite(number)), default=0.0)
