"""Every net of the zoo, by every strategy and for every matrix, against differences of the plain module's gradients."""

from __future__ import annotations

import os
import re
from contextlib import nullcontext, suppress

import pytest
import torch
from zoo.nets import NETS
from zoo.problem import Net, Problem
from zoo.reference import Reference, chosen, each_tensor

import pipeline
from pipeline.errors import PipelineError
from pipeline.matrix import MATRICES
from pipeline.strategy import STRATEGIES, tolerance_of

os.environ["HF_HUB_OFFLINE"] = "1"
EVERYTHING = "ZOO" in os.environ  # every strategy for every matrix, every matrix by all weights
FEW = 48  # weights, of the selection that each strategy is tried on
MANY = 400  # weights, above which strategy=auto looks at what enters linearly
TOLERANCE = 1e-5  # of H v; models that compute parts in float32 themselves are right to some 1e-7
NO_WAY = "in forward mode|cannot differentiate this model or its loss"
MAY_REFUSE = {  # what a strategy may say of a net that it cannot differentiate; others take them all
    "func": f"takes samples one at a time|{NO_WAY}",
    "hvp": NO_WAY,
    "khatri_rao": NO_WAY,
}
WRONG = "H v differs from"  # what the certificate says


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def cases(keep=lambda net: True):
    """The nets, those of a library that is not installed skipped. What libraries warn of is theirs."""
    return [
        pytest.param(
            net,
            id=net.id,
            marks=[
                pytest.mark.skipif(bool(net.missing), reason=f"{net.requires} is not installed"),
                *([pytest.mark.filterwarnings("ignore")] if net.requires else []),
            ],
        )
        for net in NETS.values()
        if keep(net)
    ]


def has_hessian(net: Net) -> bool:
    return net.refused is None


def refusal(net: Net, matrix: str) -> str | None:
    """What must be said where there is no such matrix."""
    if net.refused:
        return net.refused if matrix != "fisher" else f"{net.refused}|matrix=fisher"
    if matrix == "fisher" and not net.draws_targets:
        return "matrix=fisher"
    if matrix == "empirical_fisher" and net.samples is None:
        return "matrix=empirical_fisher"
    return None


def may_refuse(net: Net, matrix: str) -> bool:
    return net.mixes and matrix == "empirical_fisher"


def selection(problem: Problem, num_weights: int, more: bool = False) -> list[str]:
    """Parameters of so many entries at most, or of more: small ones first, of these the last first."""
    names = chosen(problem.model, problem.parameters)
    sizes = {name: value.numel() for name, value in problem.model.named_parameters()}
    found: list[str] = []
    for name in sorted(names, key=lambda name: (sizes[name], -names.index(name))):
        total = sum(sizes[one] for one in found)
        if total + sizes[name] <= num_weights or (more and total <= num_weights):
            found.append(name)
    return found or names[-1:]


def computed(problem: Problem, net: Net, **options):
    """In float64, where the inputs can be taken there."""
    dtype = torch.float64 if net.castable else None
    options = {"parameters": problem.parameters, "dtype": dtype} | options
    return pipeline.hessian(*problem[:4], **options)


def is_known(matrix: str) -> bool:
    """Whether `zoo/reference.py` has the products with it; else a new one is held to its own certificate."""
    return matrix == "fisher" or hasattr(Reference, matrix)


def product(reference: Reference, matrix: str, direction, samples: str | None):
    if matrix == "empirical_fisher":
        return reference.empirical_fisher(direction, samples)
    return getattr(reference, "ggn" if matrix == "fisher" else matrix)(direction)


def check(problem: Problem, reference: Reference, matrix: str, net: Net, dense, declared: float = 0) -> None:
    assert dense.shape == (reference.size, reference.size)
    assert torch.equal(dense, dense.T)
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(reference.size, generator=generator, dtype=torch.float64)
    expected = product(reference, matrix, direction, net.samples)
    size = float(product(reference, "hessian", direction, None).value.norm()) + float(expected.value.norm())
    assert expected.uncertainty < TOLERANCE * size, "the reference is not sharp enough"
    error = float((dense.double() @ direction - expected.value).norm())
    assert error <= (TOLERANCE + declared) * size, f"off by {error / size:.1e}"


def told_of(problem: Problem, net: Net, matrix: str) -> str:
    """The line with which a matrix is refused, nothing where it is not."""
    try:
        computed(problem, net, matrix=matrix)
    except PipelineError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("net", cases())
def test_auto_is_right(net, matrix):
    problem = net.build()
    if said := refusal(net, matrix):
        with pytest.raises(PipelineError, match=said) as told:
            computed(problem, net, matrix=matrix)
        assert "\n" not in str(told.value)
        return
    if matrix != "hessian" and not EVERYTHING:
        problem = problem._replace(parameters=selection(problem, MANY, more=True))
    if not is_known(matrix):
        assert WRONG not in told_of(problem, net, matrix)
        return
    with suppress(PipelineError) if may_refuse(net, matrix) else nullcontext():
        dense = computed(problem, net, matrix=matrix)
        check(problem, Reference(problem), matrix, net, dense)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "auto"])
@pytest.mark.parametrize("net", cases(has_hessian))
def test_every_strategy_is_right_or_refuses_in_one_line(net, strategy):
    """On a few weights; unless all is asked for, one matrix each, by turns.

    One that is not exact to rounding may be wrong where the certificate says so: its differences cross kinks.
    """
    declared = tolerance_of(STRATEGIES[strategy](), torch.float64)
    reasons = MAY_REFUSE.get(strategy, "nothing is refused") + (f"|{WRONG}" if declared else "")
    problem = net.build()
    problem = problem._replace(parameters=selection(problem, FEW))
    reference = Reference(problem)
    matrices = [matrix for matrix in MATRICES if is_known(matrix) and not refusal(net, matrix)]
    if not EVERYTHING:
        turn = list(NETS).index(net.id) + list(STRATEGIES).index(strategy)
        matrices = [matrices[turn % len(matrices)]]
    for matrix in matrices:
        dense = None
        try:
            dense = computed(problem, net, matrix=matrix, strategy=strategy, verify=declared > 0)
        except PipelineError as error:
            told = str(error)
        if dense is None and may_refuse(net, matrix):
            assert "matrix=empirical_fisher" in told
        elif dense is None:
            assert re.search(reasons, told), told
            assert "\n" not in told
        else:
            check(problem, reference, matrix, net, dense, declared)


@pytest.mark.parametrize("net", cases(has_hessian))
def test_a_right_matrix_is_certified_in_float32(net):
    problem = net.build()
    computed(problem, net, parameters=selection(problem, FEW), dtype=None, verify=True)


@pytest.mark.parametrize("net", cases())
def test_the_model_and_the_data_are_left_as_they_were_found(net):
    problem = net.build()
    first = next(value for value in problem.model.parameters() if value.requires_grad)
    first.grad = torch.ones_like(first)
    before, grads = snapshot(problem), [value.grad for value in problem.model.parameters()]
    with suppress(PipelineError):  # refused or not, nothing is changed
        computed(problem, net, parameters=selection(problem, FEW), verify=True)
    for one, other in zip(before, snapshot(problem), strict=True):
        assert same(one, other)
    assert all(one is two.grad for one, two in zip(grads, problem.model.parameters(), strict=True))
    assert torch.equal(first.grad, torch.ones_like(first))


def snapshot(problem: Problem):
    """Copies of all tensors, and what the modules say of themselves."""
    tensors: list[torch.Tensor] = [torch.get_rng_state()]
    each_tensor((problem.inputs, problem.targets), lambda value: tensors.append(value.clone()) or value)
    tensors += [value.detach().clone() for value in problem.model.state_dict().values()]
    modules = list(problem.model.modules())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return [
        *tensors,
        [(module.training, sorted(vars(module))) for module in modules],
        [len(getattr(module, kind)) for module in modules for kind in hooks],
        [(name, value.requires_grad, id(value)) for name, value in problem.model.named_parameters()],
        [(name, id(value)) for name, value in problem.model.named_buffers()],
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
    ]


def same(one, other) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
