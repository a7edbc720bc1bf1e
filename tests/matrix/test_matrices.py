"""Every matrix from every strategy, against formulas written out on the plain module."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from support.cases import CASES, Case, Problem, mlp
from support.oracles import double_backward, loss_of, weights_of
from support.variants import NAMES, declared, strategy
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import pipeline
from pipeline.criterion import CrossEntropy, SquaredError
from pipeline.errors import PipelineError
from pipeline.matrix import GGN, MATRICES, EmpiricalFisher, Fisher, Residual
from pipeline.objective.batch import Batch
from pipeline.objective.certificate import certify, directions
from pipeline.objective.objective import objective_of
from pipeline.objective.reference import Reference

BY_ID = {case.id: case for case in CASES}
SOME = (
    "mlp-tanh-sum",
    "mlp-gelu",
    "thread",
    "convolutions",
    "attention-layernorm",
    "tied",
    "dict-outputs",
    "sequences",
    "cross-entropy-sum",
    "bce-labels",
    "bce-sum",
    "one-sample",
    "selected",
)
each_case = pytest.mark.parametrize("case", [BY_ID[name] for name in SOME], ids=SOME)
each_strategy = pytest.mark.parametrize("name", NAMES)


def found(problem: Problem, matrix: object, by: object = "triangular") -> Tensor:
    model, criterion, (inputs, targets), parameters = problem
    return pipeline.hessian(model, criterion, inputs, targets, by, matrix, parameters)


def outputs_of(problem: Problem) -> list[Tensor]:
    inputs = problem.batch.inputs
    outputs = problem.model(**inputs) if isinstance(inputs, dict) else problem.model(inputs)
    return pytree.tree_leaves(outputs)


def jacobian(problem: Problem) -> Tensor:
    """Of all outputs, flat and one after the other: (outputs, P)."""
    weights = weights_of(problem)
    flat = torch.cat([value.flatten() for value in outputs_of(problem)])
    rows = [torch.autograd.grad(f, weights, retain_graph=True, materialize_grads=True) for f in flat]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


def curvature(problem: Problem) -> Tensor:
    """Λ, the Hessian of the criterion by all outputs."""
    inputs = problem.batch.inputs
    outputs = problem.model(**inputs) if isinstance(inputs, dict) else problem.model(inputs)
    leaves, form = pytree.tree_flatten(outputs)
    sizes = [leaf.numel() for leaf in leaves]

    def loss(flat: Tensor) -> Tensor:
        parts = [part.reshape(leaf.shape) for part, leaf in zip(flat.split(sizes), leaves, strict=True)]
        return problem.criterion(pytree.tree_unflatten(parts, form), problem.batch.targets)

    return torch.autograd.functional.hessian(loss, torch.cat([leaf.detach().flatten() for leaf in leaves]))


def gauss_newton(problem: Problem) -> Tensor:
    j = jacobian(problem)
    return j.T @ curvature(problem) @ j


def second_moment(problem: Problem) -> Tensor:
    model, criterion, batch, parameters = problem
    total = 0.0
    for n in range(batch.num_samples):
        alone = Problem(model, criterion, batch.chunk(n, n + 1), parameters)
        targets = pytree.tree_map(lambda t, n=n: t[n : n + 1], batch.targets)
        alone = Problem(model, criterion, Batch(alone.batch.inputs, targets), parameters)
        weights = weights_of(alone)
        parts = torch.autograd.grad(loss_of(alone), weights, materialize_grads=True)
        slope = torch.cat([part.flatten() for part in parts])
        total = total + torch.outer(slope, slope)
    is_sum = getattr(criterion, "reduction", "mean") == "sum"
    return total if is_sum else total / batch.num_samples


FORMULAS: dict[str, Callable[[Problem], Tensor]] = {  # on the plain module
    "ggn": gauss_newton,
    "residual": lambda problem: double_backward(problem) - gauss_newton(problem),
    "empirical_fisher": second_moment,
}
ELSEWHERE = {"hessian", "fisher"}  # in tests/strategy; below, against sums over labels


def test_every_matrix_is_compared_with_a_formula() -> None:
    assert {*FORMULAS, *ELSEWHERE} == {*MATRICES}


@cache
def expected(case: Case, matrix: str) -> Tensor:
    return FORMULAS[matrix](case.build())


@each_case
@each_strategy
@pytest.mark.parametrize("matrix", FORMULAS)
def test_equals_the_formula(case: Case, name: str, matrix: str) -> None:
    reference = expected(case, matrix)
    scale = max(reference.abs().max(), expected(case, "ggn").abs().max())
    options = {"chunk_size": 3} if name == "func" else {}
    built = strategy(name, **options)
    allowed = 1e-10 * scale + declared(built) * reference.norm()
    assert (found(case.build(), matrix, built) - reference).abs().max() <= allowed


@each_case
@pytest.mark.parametrize("matrix", MATRICES)
def test_the_certificate_passes(case: Case, matrix: str) -> None:
    problem = case.build()
    if matrix == "fisher" and case.id == "dict-outputs":
        with pytest.raises(PipelineError, match="does not know how"):
            found(problem, matrix)
        return
    dense = found(problem, matrix, "khatri_rao")
    reference = Reference(problem.model, problem.criterion, problem.parameters, problem.batch)
    products, kind = dense @ directions(len(dense)), MATRICES[matrix]()
    assert certify(reference, kind, products, torch.float64, problem.batch.targets).passed
    assert not certify(reference, kind, 1.01 * products, torch.float64, problem.batch.targets).passed


@pytest.mark.parametrize("id", ["mlp-gelu", "sequences", "bce-labels", "bce-sum", "mlp-tanh-sum", "thread"])
def test_the_expected_fisher_is_the_ggn_and_draws_tend_to_it(id: str) -> None:
    """The error of M draws falls as 1 / √M: sixteen times as many leave about a quarter of it."""
    problem = BY_ID[id].build()
    exact = found(problem, Fisher(), "khatri_rao")
    assert (exact - expected(BY_ID[id], "ggn")).abs().max() <= 1e-10 * exact.abs().max()

    def error(num_draws: int) -> float:
        errors = [
            float((found(problem, Fisher(num_draws, seed), "khatri_rao") - exact).norm() / exact.norm())
            for seed in range(12)
        ]
        return sum(errors) / len(errors)

    few, many = error(10), error(160)
    assert 2.8 < few / many < 5.6


def test_the_expected_fisher_of_labels_by_the_sum_over_labels() -> None:
    problem = BY_ID["mlp-gelu"].build()
    total = 0.0
    for n in range(problem.batch.num_samples):
        (f,) = outputs_of(Problem(problem.model, problem.criterion, problem.batch.chunk(n, n + 1), None))
        weights = weights_of(problem)
        for label, p in enumerate(f.softmax(1)[0]):
            parts = torch.autograd.grad(
                -f.log_softmax(1)[0, label], weights, retain_graph=True, materialize_grads=True
            )
            slope = torch.cat([part.flatten() for part in parts])
            total = total + p.detach() * torch.outer(slope, slope)
    total = total / problem.batch.num_samples
    assert (found(problem, "fisher") - total).abs().max() <= 1e-12 * total.abs().max()


@each_strategy
def test_draws_are_the_same_for_every_strategy(name: str) -> None:
    problem = BY_ID["mlp-gelu"].build()
    options = {"chunk_size": 3} if name == "func" else {}
    reference = found(problem, Fisher(5, seed=1))
    built = strategy(name, **options)
    allowed = 1e-12 + declared(built) * reference.norm()
    assert (found(problem, Fisher(5, seed=1), built) - reference).abs().max() < allowed
    assert (found(problem, Fisher(5, seed=2), built) - reference).abs().max() > 1e-3


def test_draws_differ_from_batch_to_batch() -> None:
    problem = BY_ID["mlp-gelu"].build()
    objective, params = objective_of(problem.model, problem.criterion)
    _, one = Fisher(50).problem(objective, params, problem.batch)
    moved = Batch(problem.batch.inputs + 1e-3, problem.batch.targets)
    _, other = Fisher(50).problem(objective, params, moved)
    assert not torch.equal(one.targets, other.targets)


@pytest.mark.parametrize(
    "criterion",
    [CrossEntropy(label_smoothing=0.1), nn.CrossEntropyLoss(torch.ones(3).double()), nn.HuberLoss()],
    ids=["smoothing", "class weights", "huber"],
)
def test_fisher_refuses_what_it_cannot_draw_for(criterion: Callable[..., Tensor]) -> None:
    model, _, batch, _ = BY_ID["mlp-gelu"].build()
    if isinstance(criterion, nn.HuberLoss):
        batch = batch._replace(targets=model(batch.inputs).detach() + 1)
    with pytest.raises(PipelineError, match=r"does not know how for .*: choose cross-entropy"):
        pipeline.hessian(model, criterion, *batch, matrix="fisher")


@pytest.mark.parametrize("id", ["class-weights", "ignored-labels", "coupled-samples"])
def test_empirical_fisher_refuses_losses_that_are_no_sum_over_samples(id: str) -> None:
    with pytest.raises(PipelineError, match=r"neither the mean nor the sum .*: use reduction='sum'"):
        found(BY_ID[id].build(), EmpiricalFisher())


def test_empirical_fisher_sees_class_weights_that_halves_of_the_batch_do_not_show() -> None:
    torch.manual_seed(0)
    model, x, y = mlp(4, 5, 2).double(), torch.randn(4, 4).double(), torch.tensor([0, 1, 0, 1])
    criterion = nn.CrossEntropyLoss(torch.tensor([1.0, 3.0]).double())
    with pytest.raises(PipelineError, match="neither the mean nor the sum"):
        pipeline.hessian(model, criterion, x, y, matrix="empirical_fisher")


def classified(activation: type[nn.Module]) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = mlp(4, 8, 7, 3, activation=activation).double()
    return model, torch.randn(5, 4).double(), torch.randint(3, (5,))


@pytest.mark.parametrize("name", ["khatri_rao", "hvp"])
def test_ggn_has_the_rank_of_its_samples_and_no_negative_eigenvalue(name: str) -> None:
    model, x, y = classified(nn.Tanh)
    values = torch.linalg.eigvalsh(pipeline.hessian(model, CrossEntropy(), x, y, name, "ggn"))
    assert int((values > 1e-10 * values.max()).sum()) == len(x) * (3 - 1)
    assert values.min() >= -1e-14 * values.max() * len(values)


@pytest.mark.parametrize(("activation", "equal"), [(nn.ReLU, True), (nn.Tanh, False)])
def test_traces_agree_on_piecewise_linear_nets_alone(activation: type[nn.Module], equal: bool) -> None:
    model, x, y = classified(activation)
    hessian, ggn = (
        pipeline.hessian(model, CrossEntropy(), x, y, "khatri_rao", name) for name in ("hessian", "ggn")
    )
    assert (abs(hessian.trace() - ggn.trace()) <= 1e-12 * ggn.trace()) == equal
    for rows in (slice(0, 32), slice(40, 96)):  # the blocks of two weights
        same = (hessian[rows, rows] - ggn[rows, rows]).abs().max() <= 1e-12 * ggn.abs().max()
        assert bool(same) == equal


@pytest.mark.parametrize("name", ["khatri_rao", "func"])
def test_ranks_of_a_deep_linear_net(name: str) -> None:
    """Singh et al. 2021: 144, 48 and 112 for H, the GGN and the rest, for 12-7-5-6-4 without biases."""
    torch.manual_seed(0)
    model = mlp(12, 7, 5, 6, 4, activation=nn.Identity, bias=False).double()
    x, y = torch.randn(40, 12).double(), torch.randn(40, 4).double()
    ranks = []
    for matrix in ("hessian", GGN(), Residual()):
        values = torch.linalg.eigvalsh(pipeline.hessian(model, SquaredError(), x, y, name, matrix)).abs()
        ranks.append(int((values > 1e-10 * values.max()).sum()))
    assert ranks == [144, 48, 112]


def test_nothing_is_left_where_nothing_is_wrong() -> None:
    """Squared error without a residual: H = G."""
    problem = BY_ID["no-residual"].build()
    assert found(problem, "residual", "khatri_rao").abs().max() < 1e-12
    torch.manual_seed(0)
    model, x = mlp(3, 5, 2).double(), torch.randn(7, 3).double()
    y = model(x).detach()
    hessian, rest = (
        pipeline.hessian(model, SquaredError(), x, y, "khatri_rao", name) for name in ("hessian", "residual")
    )
    assert rest.abs().max() <= 1e-13 * hessian.abs().max()


@pytest.mark.parametrize("option", [{"num_draws": 0}, {"num_draws": 2.5}, {"seed": -1}])
def test_options_of_fisher(option: dict[str, float]) -> None:
    with pytest.raises(PipelineError, match=r"matrix\.(num_draws|seed)=.*: give a whole number"):
        Fisher(**option)
