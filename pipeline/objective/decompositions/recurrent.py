"""Recurrent layers as a loop over time: LSTM, GRU and Elman's RNN, of any depth, in one or both directions.

All weights enter through `linear`: those of the inputs once for the whole sequence, (N, T, features), those of the
state once a step, (N, features). Sequences of different length (`PackedSequence`) are padded inside, and the state of a
sequence that has ended stays.
Source: the equations in the documentation of `nn.LSTM`, `nn.GRU` and `nn.RNN`, in PyTorch's order of gates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = tuple[Tensor, ...]  # (h,), or (h, c) of an LSTM
Step = Callable[[Tensor, State, "Weights"], State]


@dataclass(frozen=True)
class Weights:
    """Of one layer and direction, in PyTorch's order; `of_output` projects the output of an LSTM."""

    of_input: Tensor
    of_state: Tensor
    input_bias: Tensor | None = None
    state_bias: Tensor | None = None
    of_output: Tensor | None = None

    def from_input(self, x: Tensor) -> Tensor:
        return F.linear(x, self.of_input, self.input_bias)

    def from_state(self, h: Tensor) -> Tensor:
        return F.linear(h, self.of_state, self.state_bias)


def _lstm_step(x: Tensor, state: State, weights: Weights) -> State:
    """One step, from the part of the gates that comes from the input."""
    h, c = state
    i, f, g, o = (x + weights.from_state(h)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h if weights.of_output is None else F.linear(h, weights.of_output)), c


def _gru_step(x: Tensor, state: State, weights: Weights) -> State:
    (h,) = state
    (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, -1), weights.from_state(h).chunk(3, -1)
    z = torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
    return ((1 - z) * n + z * h,)


def _rnn_step(activation: Callable[[Tensor], Tensor], x: Tensor, state: State, weights: Weights) -> State:
    return (activation(x + weights.from_state(state[0])),)


def _lstm(input: Tensor, second: Any, *rest: Any, **options: Any) -> tuple[Tensor, ...]:
    if isinstance(second, Tensor):
        return _packed(_lstm_step, input, second, tuple(rest[0]), *rest[1:], **options)
    return _batched(_lstm_step, input, tuple(second), *rest, **options)


def _one_state(
    step: Step, input: Tensor, second: Tensor, third: Any, *rest: Any, **options: Any
) -> tuple[Tensor, ...]:
    """GRU and RNN: packed sequences have one tensor more before the list of weights."""
    if isinstance(third, Tensor):
        return _packed(step, input, second, (third,), *rest, **options)
    return _batched(step, input, (second,), third, *rest, **options)


def _batched(
    step: Step,
    input: Tensor,
    state: State,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    layers = _layers(params, has_biases, num_layers, bidirectional)
    x_NTF = input if batch_first else input.transpose(0, 1)
    outputs, last = _run(step, x_NTF, state, layers, dropout if train else 0.0, None)
    return (outputs if batch_first else outputs.transpose(0, 1)), *last


def _packed(
    step: Step,
    data: Tensor,
    batch_sizes: Tensor,
    state: State,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
) -> tuple[Tensor, ...]:
    """Row batch_sizes[0] + … + batch_sizes[t - 1] + n of the data is step t of sequence n, the longest first."""
    layers = _layers(params, has_biases, num_layers, bidirectional)
    x_NTF, running = _unpacked(data, batch_sizes)
    outputs, last = _run(step, x_NTF, state, layers, dropout if train else 0.0, running)
    return outputs.transpose(0, 1)[running.T], *last


def _unpacked(data: Tensor, batch_sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Sequences padded with anything, (N, T, features), and where they have not ended, (N, T)."""
    sizes = batch_sizes.to(data.device)
    numbers = torch.arange(int(sizes[0]), device=data.device)[:, None]
    rows = sizes.cumsum(0) - sizes + numbers
    return data[rows.clamp(max=len(data) - 1)], numbers < sizes


def _pad(
    data: Tensor, batch_sizes: Tensor, batch_first: bool, padding_value: float, total_length: int
) -> tuple[Tensor, Tensor]:
    x_NTF, running = _unpacked(data, batch_sizes)
    padded = x_NTF.masked_fill(~running.reshape(*running.shape, *[1] * (data.ndim - 1)), padding_value)
    missing = max(0, total_length - padded.shape[1])
    padded = torch.cat([padded, padded.new_full((len(padded), missing, *data.shape[1:]), padding_value)], 1)
    return padded if batch_first else padded.transpose(0, 1), running.sum(1).cpu()


def _pack(input: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """The data and the batch sizes of sequences whose lengths do not grow."""
    if bool((lengths.diff() > 0).any()) or int(lengths.min()) < 1:
        raise RuntimeError(f"lengths must fall, and be at least 1, got {lengths.tolist()}")
    running = lengths > torch.arange(int(lengths[0]), device=lengths.device)[:, None]  # (T, N)
    x_TNF = (input.transpose(0, 1) if batch_first else input)[: len(running)]
    return x_TNF[running.to(input.device)], running.sum(1).cpu()


def _layers(
    params: Sequence[Tensor], has_biases: bool, num_layers: int, bidirectional: bool
) -> list[list[Weights]]:
    """The flat list of weights by layer and direction."""
    directions = 2 if bidirectional else 1
    size = len(params) // (num_layers * directions)
    parts: list[list[Any]] = [list(params[first : first + size]) for first in range(0, len(params), size)]
    if not has_biases:
        parts = [[*part[:2], None, None, *part[2:]] for part in parts]
    weights = [Weights(*part) for part in parts]
    return [weights[first : first + directions] for first in range(0, len(weights), directions)]


def _run(
    step: Step,
    x_NTF: Tensor,
    state: State,
    layers: list[list[Weights]],
    dropout: float,
    running: Tensor | None,
) -> tuple[Tensor, list[Tensor]]:
    """Outputs of the last layer, (N, T, features), and the last states, (layers · directions, N, features) each.

    running: (N, T), False where a sequence has ended; None where all are equally long.
    """
    last: list[State] = []
    for number, directions in enumerate(layers):
        if number and dropout:
            x_NTF = F.dropout(x_NTF, dropout)
        outputs = []
        for backwards, weights in enumerate(directions):
            first = tuple(part[len(last)] for part in state)
            output, end = _sweep(step, weights, x_NTF, first, bool(backwards), running)
            outputs.append(output)
            last.append(end)
        x_NTF = torch.cat(outputs, -1)
    return x_NTF, [torch.stack(parts) for parts in zip(*last, strict=True)]


def _sweep(
    step: Step, weights: Weights, x_NTF: Tensor, state: State, backwards: bool, running: Tensor | None
) -> tuple[Tensor, State]:
    gates, length = weights.from_input(x_NTF), x_NTF.shape[1]
    outputs: dict[int, Tensor] = {}
    for t in reversed(range(length)) if backwards else range(length):
        moved = step(gates[:, t], state, weights)
        if running is not None:
            moved = tuple(
                torch.where(running[:, t, None], new, old) for new, old in zip(moved, state, strict=True)
            )
        state = moved
        outputs[t] = state[0]
    return torch.stack([outputs[t] for t in range(length)], 1), state


def _cell(
    step: Step,
    input: Tensor,
    state: Any,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Any:
    weights = Weights(w_ih, w_hh, b_ih, b_hh)
    single = isinstance(state, Tensor)
    moved = step(weights.from_input(input), (state,) if single else tuple(state), weights)
    return moved[0] if single else moved


_tanh_step, _relu_step = partial(_rnn_step, torch.tanh), partial(_rnn_step, torch.relu)
DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    torch._C._VariableFunctions._pack_padded_sequence: _pack,
    torch._C._VariableFunctions._pad_packed_sequence: _pad,
    torch.lstm: _lstm,
    torch.gru: partial(_one_state, _gru_step),
    torch.rnn_tanh: partial(_one_state, _tanh_step),
    torch.rnn_relu: partial(_one_state, _relu_step),
    torch.lstm_cell: partial(_cell, _lstm_step),
    torch.gru_cell: partial(_cell, _gru_step),
    torch.rnn_tanh_cell: partial(_cell, _tanh_step),
    torch.rnn_relu_cell: partial(_cell, _relu_step),
}
