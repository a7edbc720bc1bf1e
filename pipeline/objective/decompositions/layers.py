"""Layers spelled out: norms, attention, bags of embeddings, distances; each equals PyTorch's function to rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from math import inf, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import PipelineError


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    result = F.relu6(input + 3) / 6
    return input.copy_(result) if inplace else result


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """The direction of v times g: g v / ‖v‖, the norm over all dimensions but `dim`, over all of them for -1."""
    others = [d for d in range(v.ndim) if d != dim]
    return v * (g / v.square().sum(others, keepdim=True).sqrt())


def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Σ_ij x_i W[k, i, j] y_j + b_k: PyTorch's has no batching rule, and goes through a `vmap` one by one."""
    result = torch.einsum("...i,kij,...j->...k", input1, weight, input2)
    return result if bias is None else result + bias


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    normalized = _normalized(input, list(range(-len(normalized_shape), 0)), eps)
    if weight is None:
        return normalized if bias is None else normalized + bias
    return normalized * weight if bias is None else torch.addcmul(bias, normalized, weight)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """In training mode by the statistics of the batch, and none are kept."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if input.numel() == input.shape[1]:
        raise ValueError(
            f"batch_norm in training needs more than one value a channel, got {tuple(input.shape)}"
        )
    return _scaled(_normalized(input, [dim for dim in range(input.ndim) if dim != 1], eps), weight, bias)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """By the statistics of each sample where they are wanted, and none are kept."""
    if not use_input_stats:
        return F.instance_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if input[0, 0].numel() == 1:
        raise ValueError(f"instance_norm needs more than one value a channel, got {tuple(input.shape)}")
    return _scaled(_normalized(input, list(range(2, input.ndim)), eps), weight, bias)


def _scaled(input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Scale and shift of each channel, as a normalization by mean 0 and variance 1: other modes can see the weights."""
    if weight is None and bias is None:
        return input
    zeros = input.new_zeros(input.shape[1])
    return F.batch_norm(input, zeros, zeros + 1, weight, bias, False, 0.0, 0.0)


def _normalized(input: Tensor, dims: list[int], eps: float) -> Tensor:
    variance, mean = torch.var_mean(input, dims, correction=0, keepdim=True)
    return (input - mean) * (variance + eps).rsqrt()


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(Q Kᵀ scale + mask) V; a query that may look nowhere gets zeros."""
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    hidden = None
    if is_causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        hidden = ~attn_mask if hidden is None else hidden | ~attn_mask
    elif attn_mask is not None:
        scores = scores + attn_mask
        hidden = scores == -inf if hidden is None else hidden | (scores == -inf)
    if hidden is None:
        weights = torch.softmax(scores, -1)
    else:
        nowhere = hidden.all(-1, keepdim=True)
        weights = torch.softmax(scores.masked_fill(hidden, -inf), -1)
        weights = weights.masked_fill(nowhere, 0)
    return F.dropout(weights, dropout_p, dropout_p > 0) @ value


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Sum, mean or maximum of the embeddings of each bag, those of the padding left out; zeros for an empty bag."""
    check_lookup("embedding_bag", max_norm, scale_grad_by_freq)
    kept = torch.ones_like(input, dtype=torch.bool)
    if input.ndim == 1 and offsets is not None:
        places, kept = _places(len(input), offsets, include_last_offset)
        input = input[places]
        per_sample_weights = per_sample_weights[places] if per_sample_weights is not None else None
    if padding_idx is not None:
        kept = kept & (input != padding_idx % len(weight))
    rows = F.embedding(input, weight)
    if mode == "max":
        least = rows.masked_fill(~kept[..., None], torch.finfo(rows.dtype).min)
        return least.max(1).values.masked_fill(~kept.any(1, keepdim=True), 0)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights[..., None]
    total = rows.masked_fill(~kept[..., None], 0).sum(1)
    return total / kept.sum(1, keepdim=True).clamp(min=1) if mode == "mean" else total


def _places(length: int, offsets: Tensor, include_last_offset: bool) -> tuple[Tensor, Tensor]:
    """Where the entries of each bag lie, (B, size of the largest), and which of those places are its own."""
    ends = offsets[1:] if include_last_offset else torch.cat([offsets[1:], offsets.new_tensor([length])])
    starts = offsets[:-1] if include_last_offset else offsets
    largest = max(1, int((ends - starts).max())) if len(starts) else 1
    places = starts[:, None] + torch.arange(largest, device=offsets.device)
    return places.clamp(max=max(0, length - 1)), places < ends[:, None]


def check_lookup(name: str, max_norm: float | None, scale_grad_by_freq: bool) -> None:
    """Refuse look-ups whose gradient is not that of the loss.

    Raises:
        PipelineError: the look-up rewrites its weights, or scales their gradient.
    """
    if max_norm is not None:
        raise PipelineError(
            f"{name} with max_norm={max_norm} rewrites its weights at each call: set max_norm=None."
        )
    if scale_grad_by_freq:
        raise PipelineError(
            f"{name} with scale_grad_by_freq has a gradient that is not its loss's: set scale_grad_by_freq=False."
        )


def max_unpool(input: Tensor, indices: Tensor, output_size: Sequence[int], *options: Any) -> Tensor:
    """Values put where their maxima were found; where several fall on one place, it gets their mean.

    They are the same maximum then, seen through windows that overlap; PyTorch's derivative counts it more than once.
    """
    dims = len(output_size)
    values, places = input.flatten(-dims), indices.flatten(-dims)
    empty = values.new_zeros(*input.shape[:-dims], prod(output_size))
    counts = empty.scatter_add(-1, places, torch.ones_like(values)).clamp(min=1)
    result: Tensor = (empty.scatter_add(-1, places, values) / counts).unflatten(-1, tuple(output_size))
    return result


def cdist(
    x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str = "use_mm_for_euclid_dist_if_necessary"
) -> Tensor:
    """‖x1_i - x2_j‖_p; the derivative where a distance is zero is taken to be zero, as PyTorch takes it."""
    return _length((x1[..., :, None, :] - x2[..., None, :, :]), p)


def pdist(input: Tensor, p: float = 2.0) -> Tensor:
    """The distances of all pairs of rows, i < j."""
    first, second = torch.triu_indices(len(input), len(input), 1, device=input.device)
    return _length(input[first] - input[second], p)


def _length(differences: Tensor, p: float) -> Tensor:
    same = (differences == 0).all(-1, keepdim=True)
    lengths: Tensor = torch.linalg.vector_norm(differences.masked_fill(same, 1), p, dim=-1)
    return lengths.masked_fill(same[..., 0], 0)


def _mirrored(input: Tensor, upper: bool) -> Tensor:
    """The symmetric matrix of one triangle: the derivative of what reads no other is then no mean over both."""
    half = input.triu() if upper else input.tril()
    return half + (half.triu(1) if upper else half.tril(-1)).mT


def cholesky(A: Tensor, *, upper: bool = False) -> Any:
    return torch.linalg.cholesky(_mirrored(A, upper), upper=upper)


def eigh(A: Tensor, UPLO: str = "L") -> Any:
    return torch.linalg.eigh(_mirrored(A, UPLO.upper() == "U"), UPLO)


def eigvalsh(A: Tensor, UPLO: str = "L") -> Any:
    return torch.linalg.eigvalsh(_mirrored(A, UPLO.upper() == "U"), UPLO)


def grid_sample(
    input: Tensor,
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> Tensor:
    """Values of images (N, C, *sizes) at points (N, *, dims) of [-1, 1]^dims, the last dimension of the image first."""
    if mode == "bicubic":
        return F.grid_sample(input, grid, mode, padding_mode, align_corners)
    sizes, points = input.shape[2:], grid.flip(-1).flatten(1, -2)
    places = [
        _place(points[..., dim], size, padding_mode, bool(align_corners)) for dim, size in enumerate(sizes)
    ]
    lower = [place.round() if mode == "nearest" else place.floor() for place in places]
    total = input.new_zeros(())
    for corner in product(*([(0, 1)] * len(sizes) if mode == "bilinear" else [(0,)] * len(sizes))):
        weight, index = torch.ones_like(places[0]), torch.zeros_like(places[0], dtype=torch.long)
        for place, low, step, size in zip(places, lower, corner, sizes, strict=True):
            at = low + step
            if mode == "bilinear":
                weight = weight * (place - low if step else 1 - (place - low))
            weight = weight * ((at >= 0) & (at < size))
            index = index * size + at.clamp(0, size - 1).long()
        values = input.flatten(2).gather(2, index[:, None].expand(-1, input.shape[1], -1))
        total = total + values * weight[:, None]
    return total.reshape(*input.shape[:2], *grid.shape[1:-1])


def _place(x: Tensor, size: int, padding_mode: str, align_corners: bool) -> Tensor:
    """Where in 0 … size - 1 a coordinate in [-1, 1] lies, after what is outside has been brought in."""
    place = (x + 1) / 2 * (size - 1) if align_corners else ((x + 1) * size - 1) / 2
    if padding_mode == "reflection":
        low, high = (0.0, size - 1.0) if align_corners else (-0.5, size - 0.5)
        span = max(high - low, 1e-30)
        around = (place - low).abs() % (2 * span)
        place = low + torch.minimum(around, 2 * span - around)
    return place if padding_mode == "zeros" else place.clamp(0, size - 1)


def cholesky_inverse(input: Tensor, upper: bool = False) -> Tensor:
    """(L Lᵀ)⁻¹ or (Uᵀ U)⁻¹ of a triangle: PyTorch's own derivative in forward mode is wrong."""
    factor = input.triu() if upper else input.tril()
    unit = torch.eye(input.shape[-1], dtype=input.dtype, device=input.device).expand_as(factor)
    inverse = torch.linalg.solve_triangular(factor, unit, upper=upper)
    result: Tensor = inverse @ inverse.mH if upper else inverse.mH @ inverse
    return result


def det(A: Tensor) -> Tensor:
    """By `slogdet`: the second derivative of PyTorch's own is NaN under `torch.func` where singular values are equal.

    A singular matrix keeps PyTorch's own form.
    """
    sign, logarithm = torch.linalg.slogdet(A)
    if _is_singular(sign):
        singular: Tensor = torch.linalg.det(A)
        return singular
    result: Tensor = sign.detach() * logarithm.exp()
    return result


def logdet(A: Tensor) -> Tensor:
    """NaN where the determinant is negative."""
    sign, logarithm = torch.linalg.slogdet(A)
    return torch.where(sign < 0, torch.full_like(logarithm, torch.nan), logarithm)


def _is_singular(sign: Tensor) -> bool:
    try:
        return bool((sign == 0).any())
    except RuntimeError:  # under `vmap` a value cannot be asked for
        return False


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    F.hardsigmoid: hardsigmoid,
    torch._weight_norm: weight_norm,
    F.bilinear: bilinear,
    F.layer_norm: layer_norm,
    F.batch_norm: batch_norm,
    F.instance_norm: instance_norm,
    torch.cdist: cdist,
    F.pdist: pdist,
    torch._C._nn.max_unpool2d: max_unpool,
    torch._C._nn.max_unpool3d: max_unpool,
    F.grid_sample: grid_sample,
    torch.cholesky: lambda input, upper=False: cholesky(input, upper=upper),
    torch.linalg.cholesky: cholesky,
    torch.cholesky_inverse: cholesky_inverse,
    Tensor.cholesky_inverse: cholesky_inverse,
    **dict.fromkeys((torch.det, torch.linalg.det, Tensor.det), det),
    **dict.fromkeys((torch.logdet, Tensor.logdet), logdet),
    torch.linalg.eigh: eigh,
    torch.linalg.eigvalsh: eigvalsh,
}
COMPOSED: dict[Any, Callable[..., Tensor]] = {
    F.scaled_dot_product_attention: scaled_dot_product_attention,
    F.embedding_bag: embedding_bag,
}
