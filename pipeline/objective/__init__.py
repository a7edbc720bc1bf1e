"""The loss as a function of the weights, differentiable twice, and the problem that it belongs to."""

from pipeline.objective.activation_checkpoints import honored
from pipeline.objective.batch import Batch, Inputs
from pipeline.objective.certificate import Certificate, certify, directions
from pipeline.objective.checkpoints import (
    FINGERPRINT,
    check_weights,
    evidence_in,
    fingerprint,
    load_state,
    load_torch,
    load_weights,
    put_weights,
    save_weights,
)
from pipeline.objective.description import describe, is_one_hot, suspicions
from pipeline.objective.differences import SAFETY, SHARP, Product
from pipeline.objective.entry import check_loss, device_named, differentiation
from pipeline.objective.evaluation import IGNORED, Criterion, accuracy, evaluate, observe, predict
from pipeline.objective.fit import check_fit
from pipeline.objective.linearized import DifferenceObjective, LinearizedModel, LinearizedOutputs, linearized
from pipeline.objective.loss_terms import num_labels, num_terms
from pipeline.objective.objective import Objective, Params, flatten, layout_of, leaves_of, objective_of
from pipeline.objective.observation import NUM_FIRST, hash_of, hashes_of, joined_hash, observed
from pipeline.objective.problem import Problem
from pipeline.objective.reference import Reference
from pipeline.objective.samples import (
    are_alike,
    check_outputs_count_samples,
    check_samples_apart,
    squares_count_samples,
)
from pipeline.objective.trees import Tree
from pipeline.objective.weight_names import matched
