"""Batches whose losses are means over other terms than samples. Oracle: double backward of the loss of all samples."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import pipeline
from pipeline.aggregate import aggregate
from pipeline.cluster import Threads
from pipeline.compute.batch_terms import check_batches
from pipeline.compute.loss_landscape import Landscape, slice_steps
from pipeline.compute.running_mean import keep_mean
from pipeline.compute.stage import compute_step, matrices_of
from pipeline.config.schema import Keep, Verify
from pipeline.errors import PipelineError
from pipeline.experiment.experiment import MatrixSpec
from pipeline.matrix import GGN, Fisher, Hessian, Residual
from pipeline.objective import objective_of
from pipeline.objective.batch import Batch
from pipeline.objective.checkpoints import save_weights
from pipeline.objective.problem import Problem
from pipeline.spectrum import Exact
from pipeline.strategy import HVP
from pipeline.system.run_folder import RunFolder

SPEC = MatrixSpec(Hessian(), HVP())
WEIGHTS = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)


class Counted:
    """Cross-entropy that leaves out class 0, and says so."""

    reduction = "mean"

    def __call__(self, outputs, targets):
        return cross_entropy(outputs, targets, ignore_index=0)

    def num_terms(self, targets):
        return int((targets != 0).sum())


def added(outputs, targets):
    """A sum that does not say that it is one."""
    return cross_entropy(outputs, targets, reduction="sum")


def left_out(outputs, targets):
    """A mean over some of the samples, which does not say which."""
    return cross_entropy(outputs, targets, ignore_index=0)


CRITERIA = {
    "class weights": nn.CrossEntropyLoss(weight=WEIGHTS),
    "smoothed class weights": nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.2),
    "ignored labels": nn.CrossEntropyLoss(ignore_index=0),
    "own terms": Counted(),
    "a sum by function": added,
}


def problem_of(criterion):
    """23 samples in batches of 10, 10 and 3."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    labels = torch.randint(3, (23,))
    return Problem(model, criterion, Batch(torch.randn(23, 4).double(), labels), None, 10)


def of_all(problem):
    """Loss, gradient and Hessian of all samples at once."""
    weights = list(problem.model.parameters())
    loss = problem.criterion(problem.model(problem.train.inputs), problem.train.targets)
    gradient = flat(torch.autograd.grad(loss, weights, create_graph=True))
    rows = [flat(torch.autograd.grad(each, weights, retain_graph=True)) for each in gradient]
    return loss.item(), gradient.detach(), torch.stack(rows).detach()


def flat(parts):
    return torch.cat([part.reshape(-1) for part in parts])


def summary(folder):
    [file] = aggregate(folder, Exact(), Threads(1))
    return file


@pytest.mark.parametrize("keep", [Keep.all, Keep.mean])
@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)
def test_the_mean_is_of_the_loss_of_all_samples(tmp_path, criterion, keep):
    problem, folder = problem_of(criterion), RunFolder(tmp_path)
    batches, spec = problem.batches(None, 0), replace(SPEC, keep=keep)
    if keep is Keep.mean:
        list(keep_mean(folder, 5, matrices_of(folder, 5, problem, batches, spec)))
    else:
        list(compute_step(folder, 5, problem, batches, spec))
    file = summary(folder)
    loss, gradient, hessian = of_all(problem)
    assert file.numbers["loss"] == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(file.mean.gradient, gradient, atol=1e-12)
    np.testing.assert_allclose(pipeline.open_shard(folder.mean(5)).dense(), hessian, atol=1e-12)
    np.testing.assert_allclose(file.mean.eigenvalues, torch.linalg.eigvalsh(hessian), atol=1e-12)
    assert file.numbers["num_samples"] == 23
    save_weights(folder.checkpoint(5), problem.model)
    landscape = Landscape(problem.model, problem.criterion, batches, None, 5)
    [(_, slices)] = slice_steps(folder, landscape)
    assert slices.lines.losses[0][2] == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("matrix", [GGN(), Residual(), Fisher()])
def test_other_matrices_are_weighted_by_the_labels_that_count(tmp_path, matrix):
    problem, folder = problem_of(CRITERIA["ignored labels"]), RunFolder(tmp_path)
    list(compute_step(folder, 5, problem, problem.batches(None, 0), replace(SPEC, matrix=matrix)))
    whole = pipeline.hessian(problem.model, problem.criterion, *problem.train, matrix=matrix)
    summary(folder)
    np.testing.assert_allclose(pipeline.open_shard(folder.mean(5)).dense(), whole, atol=1e-12)


def refused(problem, match, verify=Verify.error):
    with pytest.raises(PipelineError, match=match):
        check_batches(*objective_of(problem.model, problem.criterion), problem.batches(None, 0), verify)


def test_a_loss_whose_batches_do_not_make_up_the_whole_is_refused_or_told(caplog):
    problem = problem_of(left_out)
    refused(problem, "neither the sum nor the mean over samples.*data.batch_size=null.*verify=warn")
    at = objective_of(problem.model, problem.criterion)
    check_batches(*at, problem.batches(None, 0), Verify.warn)
    assert "weighted by their samples all the same" in caplog.text
    caplog.clear()
    check_batches(*at, replace(problem, batch_size=None).batches(None, 0), Verify.error)
    for criterion in CRITERIA.values():
        each = problem_of(criterion)
        check_batches(*objective_of(each.model, criterion), each.batches(None, 0), Verify.error)
    assert not caplog.text


def weighted(outputs, targets):
    """A mean weighted by classes, which does not say so."""
    return cross_entropy(outputs, targets, weight=WEIGHTS)


def penalized(outputs, targets, weight):
    return added(outputs, targets) + weight.square().sum()


def test_batches_that_weigh_alike_inside_and_not_between_each_other_are_refused():
    problem = replace(problem_of(weighted), batch_size=1)
    refused(problem, "neither the sum nor the mean over samples")
    weight = problem.model[0].weight
    refused(replace(problem, criterion=partial(penalized, weight=weight)), "neither the sum|penalty")
    by_class = [problem.train.targets == label for label in range(3)]
    batches = [Batch(problem.train.inputs[rows], problem.train.targets[rows]) for rows in by_class]
    at = objective_of(problem.model, weighted)
    with pytest.raises(PipelineError, match="neither the sum nor the mean over samples"):
        check_batches(*at, batches, Verify.error)
    for criterion in CRITERIA.values():
        each = replace(problem_of(criterion), batch_size=1)
        counted = [batch for batch in each.batches(None, 0) if criterion is added or int(batch.targets) > 0]
        check_batches(*objective_of(each.model, criterion), counted, Verify.error)


def test_a_batch_none_of_whose_labels_counts_is_told_before_the_work(tmp_path):
    problem = problem_of(CRITERIA["ignored labels"])
    last = problem.batches(None, 0)[2]
    labels = problem.train.targets.clone()
    labels[[int((problem.train.inputs == row).all(1).nonzero()) for row in last.inputs]] = 0
    problem = replace(problem, train=Batch(problem.train.inputs, labels))
    refused(problem, "batch 2 has no label that counts.* choose a larger data.batch_size")


def test_sequences_of_other_lengths_need_a_loss_that_names_its_terms():
    """Of a plain function nobody knows whether its mean over a batch is over sequences or over their positions."""

    def over_positions(outputs, targets):
        return cross_entropy(outputs.flatten(0, 1), targets.flatten())

    class Positions:
        reduction = "mean"
        num_terms = staticmethod(torch.numel)

        def __call__(self, outputs, targets):
            return over_positions(outputs, targets)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    batches = [(torch.randn(1, n, 4).double(), torch.randint(3, (1, n))) for n in (2, 5, 9)]
    with pytest.raises(PipelineError, match="other shapes in one batch than in another"):
        pipeline.curvature_operator(model, over_positions, batches) @ torch.eye(27).double()
    together = (torch.cat([x for x, _ in batches], 1), torch.cat([y for _, y in batches], 1))
    whole = pipeline.hessian(model, over_positions, *together)
    found = pipeline.curvature_operator(model, Positions(), batches) @ torch.eye(len(whole)).double()
    np.testing.assert_allclose(found, whole, atol=1e-12)
