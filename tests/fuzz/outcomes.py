"""What a strategy makes of a net: right, refused, wrong, raw, or right and the model is no longer as it was."""

from __future__ import annotations

import contextlib
import os
import re
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from fuzz.found import difference, photograph
from fuzz.generator import MOST_WEIGHTS, Problem, Recipe, drawn, num_weights, shrunk
from fuzz.reference import NotSharp, Reference, references

import pipeline
from pipeline.errors import PipelineError
from pipeline.strategy import Auto

STRATEGIES = ("auto", "khatri_rao", "hvp", "func", "triangular", "autograd", "auto_large")
VERIFY = os.environ.get("FUZZ_VERIFY", "yes") == "yes"
FAULTS = ("wrong", "raw", "changed", "beaten")


@dataclass(frozen=True)
class Outcome:
    """kind: right, refused, wrong, raw, changed, or beaten: auto refused what another strategy has right."""

    kind: str
    what: str = ""

    @property
    def reason(self) -> str:
        """The first words of a refusal or of an exception, without names and numbers."""
        words = re.sub(r"'[^']*'|\d[\d.]*|\([^)]*\)", "·", self.what.partition("\n")[0]).split()
        return " ".join(words[:9])


class Subject(NamedTuple):
    """A net that can be judged."""

    recipe: Recipe
    expected: dict[str, Reference]
    redrawn: tuple[str, ...]


def subject_of(seed: int, most_attempts: int = 30) -> Subject:
    """The first net of a seed that can be built and has sharp references; why those before it were left."""
    redrawn: list[str] = []
    for attempt in range(most_attempts):
        recipe = drawn(seed, attempt)
        try:
            return Subject(recipe, judged(recipe), tuple(redrawn))
        except NotSharp as reason:
            redrawn.append(str(reason))
    raise RuntimeError(f"no net of seed {seed} can be judged: {redrawn}")


def judged(recipe: Recipe) -> dict[str, Reference]:
    """The references of a recipe.

    Raises:
        NotSharp: it cannot be built, is too large, or its references are not sharp.
    """
    with quiet():
        try:
            problem = recipe.build()
        except Exception as error:
            raise NotSharp(f"not built: {type(error).__name__}") from error
        if not 0 < num_weights(problem.model) <= MOST_WEIGHTS:
            raise NotSharp("no weights, or too many")
        try:
            return references(recipe)
        except NotSharp:
            raise
        except Exception as error:
            raise NotSharp(f"the plain net fails: {type(error).__name__}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def strategy_of(name: str) -> Any:
    """auto_large decides as auto does for nets of more weights than these have."""
    return Auto(few_weights=1, very_few_weights=1, some_weights=1) if name == "auto_large" else name


def calling(recipe: Recipe) -> contextlib.AbstractContextManager[Any]:
    return {
        "plain": contextlib.nullcontext,
        "no_grad": torch.no_grad,
        "inference": torch.inference_mode,
    }[recipe.calling]()


def outcome_of(recipe: Recipe, problem: Problem, expected: Reference, strategy: str, matrix: str) -> Outcome:
    """Call the pipeline once, on a problem that is looked at before and after."""
    before = photograph(problem.model)
    grad_enabled = torch.is_grad_enabled()
    with quiet():
        try:
            with calling(recipe):
                found = pipeline.hessian(
                    *problem, strategy=strategy_of(strategy), matrix=matrix, verify=VERIFY
                )
        except PipelineError as error:
            text = str(error)
            outcome = (
                Outcome("raw", f"refusal of several lines: {text}")
                if "\n" in text
                else Outcome("refused", text)
            )
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)
            own = [f for f in where if "/pipeline/" in f.filename]
            at = f" [{own[-1].filename.rpartition('/pipeline/')[2]}:{own[-1].name}]" if own else ""
            outcome = Outcome("raw", f"{type(error).__name__}{at}: {error}")
        else:
            if expected.matrix is None:
                outcome = Outcome("wrong", f"a matrix, where there is none: {expected.why}")
            elif not expected.error(found) <= 1:
                size = float(expected.matrix.norm()) or 1.0
                off = (
                    f"relative error {expected.error(found) * expected.tolerance / size:.1e}"
                    if found.shape == expected.matrix.shape
                    else f"shape {tuple(found.shape)}"
                )
                outcome = Outcome("wrong", off)
            else:
                outcome = Outcome("right")
    changed = difference(before, photograph(problem.model))
    if torch.is_grad_enabled() != grad_enabled:
        torch.set_grad_enabled(grad_enabled)
        changed = "whether gradients are enabled"
    if not changed:
        return outcome
    if outcome.kind in {"right", "refused"}:
        return Outcome("changed", changed)
    return Outcome(outcome.kind, f"{outcome.what}; and {changed}")


def outcomes_of(subject: Subject, pairs: Any) -> dict[tuple[str, str], Outcome]:
    """Each (strategy, matrix) of the pairs, on one model as long as it stays what it was."""
    recipe, expected = subject.recipe, subject.expected
    found: dict[tuple[str, str], Outcome] = {}
    with quiet():
        problem = recipe.build()
    for strategy, matrix in pairs:
        before = photograph(problem.model)
        found[strategy, matrix] = outcome_of(recipe, problem, expected[matrix], strategy, matrix)
        if difference(before, photograph(problem.model)):
            with quiet():
                problem = recipe.build()
    for auto in ("auto", "auto_large"):
        for matrix in expected:
            mine = found.get((auto, matrix))
            others = [name for name, m in found if m == matrix and found[name, m].kind == "right"]
            if mine is not None and mine.kind == "refused" and others:
                found[auto, matrix] = Outcome("beaten", f"{mine.what} ({', '.join(others)}: right)")
    return found


def failing(strategy: str, matrix: str, outcome: Outcome) -> Callable[[Recipe], bool]:
    """Whether a recipe fails in the same way."""

    def fails(recipe: Recipe) -> bool:
        try:
            expected = judged(recipe)
        except NotSharp:
            return False
        names = (strategy,) if outcome.kind != "beaten" else STRATEGIES
        again = outcomes_of(Subject(recipe, expected, ()), [(name, matrix) for name in names])[
            strategy, matrix
        ]
        return again.kind == outcome.kind and (again.kind != "raw" or again.reason == outcome.reason)

    return fails


def shortest(recipe: Recipe, strategy: str, matrix: str, outcome: Outcome, most_tries: int) -> Recipe:
    return shrunk(recipe, failing(strategy, matrix, outcome), most_tries)


def snippet(recipe: Recipe, strategy: str, matrix: str) -> str:
    """A program that shows what happens, to be run with PYTHONPATH=.:tests."""
    chosen = (
        "Auto(few_weights=1, very_few_weights=1, some_weights=1)"
        if strategy == "auto_large"
        else repr(strategy)
    )
    lines = [
        "import torch",
        "import pipeline",
        *(["from pipeline.strategy import Auto"] if strategy == "auto_large" else []),
        "from fuzz.generator import Block, Recipe",
        "from fuzz.reference import references",
        f"recipe = {recipe!r}",
        *([] if recipe.calling == "plain" else [f"torch.set_grad_enabled(False)  # {recipe.calling}"]),
        f"found = pipeline.hessian(*recipe.build(), strategy={chosen}, matrix={matrix!r}, verify={VERIFY})",
        *([] if recipe.calling == "plain" else ["torch.set_grad_enabled(True)"]),
        f"expected = references(recipe)[{matrix!r}]",
        "print(found, expected.matrix, expected.error(found), sep='\\n')",
    ]
    return "\n".join(lines)
