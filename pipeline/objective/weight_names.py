"""Which names of a file of weights are which of a model, where others wrote the file around a module of their own.

Lightning puts the name of an attribute before each name (`model.fc.weight`), DataParallel `module.`, `torch.compile`
`_orig_mod.`. Where one such prefix, and no other, gives all of the model's names, it is taken off.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from torch import Tensor, nn

from pipeline.errors import PipelineError

COMPILED = "_orig_mod."
NUM_SHOWN = 4
State = Mapping[str, Tensor]


def matched(state: State, model: nn.Module, prefix: str | None, source: str) -> tuple[dict[str, Tensor], str]:
    """The weights under the model's names, and what was done to the names, in a line that may be empty.

    prefix: of the names in the file that are meant; None finds it.

    Raises:
        PipelineError: several prefixes would do, or none, and not a single name is the model's.
    """
    state = {name.replace(COMPILED, ""): value for name, value in state.items()}
    own = {name.replace(COMPILED, ""): value for name, value in model.state_dict(keep_vars=True).items()}
    if prefix is None:
        prefix = _prefix(state, own, source, type(model).__name__)
    elif prefix and not prefix.endswith("."):
        prefix += "."
    under = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    if not under:
        raise PipelineError(
            f"training.prefix={prefix.rstrip('.')}: no name in {source} begins so: {_names(state)}."
        )
    line = ""
    if prefix:
        left = [name for name in state if not name.startswith(prefix)]
        line = f"{source}: {len(under)} weights are called {prefix}…, as the model's without {prefix!r}"
        line += f"; left out: {_names(left)}." if left else "."
    elif outer := _outer(under, own):
        under = {outer + name: value for name, value in under.items()}
        line = f"{source}: {len(under)} weights are called as the model's without {outer!r}."
    given = {name.replace(COMPILED, ""): name for name in model.state_dict()}
    return {given.get(name, name): value for name, value in under.items()}, line


def _prefix(state: State, own: State, source: str, model: str) -> str:
    if not own or own.keys() & state.keys() or _outer(state, own):
        return ""  # what differs is told name by name
    possible = sorted(
        {name.removesuffix(each) for name in state for each in own if name.endswith(f".{each}")}
    )
    whole = [prefix for prefix in possible if _covers(state, own, prefix)]
    if len(whole) > 1:
        shown = " and ".join(prefix.rstrip(".") for prefix in whole[:NUM_SHOWN])
        raise PipelineError(
            f"{source} holds the weights of {model} under {shown}: choose with training.prefix={whole[0].rstrip('.')}."
        )
    if whole:
        return whole[0]
    if possible:  # the one that gives most names
        return max(possible, key=lambda prefix: sum(prefix + name in state for name in own))
    raise PipelineError(
        f"{source} does not fit {model}: it holds {_names(state)}, the model has {_names(own)}: give the model that it "
        "is of; training.prefix=PREFIX is taken off its names."
    )


def _covers(state: State, own: State, prefix: str) -> bool:
    """Whether each weight of the model is there under one of its names."""
    there = {id(value) for name, value in own.items() if prefix + name in state}
    return there == set(map(id, own.values()))


def _outer(state: State, own: State) -> str:
    """What all names of the model begin with, if those of the file are the same without it; else nothing."""
    first, name = next(iter(own), ""), next(iter(state), "")
    ends = [each for each in own if each.endswith(f".{name}")] if name else []
    for end in ends:
        prefix = end.removesuffix(name)
        if first.startswith(prefix) and {prefix + each for each in state} == set(own):
            return prefix
    return ""


def _names(names: object) -> str:
    """A few of them, and how many more there are."""
    listed = list(names)  # type: ignore[call-overload]
    more = f" and {len(listed) - NUM_SHOWN} more" if len(listed) > NUM_SHOWN else ""
    return ", ".join(islice(listed, NUM_SHOWN)) + more
