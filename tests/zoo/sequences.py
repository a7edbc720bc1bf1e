"""Nets on sequences, as they stand in public code: nanoGPT, taggers, experts, attention by einsum."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo.problem import Problem, labels


class CausalSelfAttention(nn.Module):
    def __init__(self, width: int, num_heads: int, block_size: int, fused: bool) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attn_dropout, self.resid_dropout = nn.Dropout(0.1), nn.Dropout(0.1)
        self.num_heads, self.fused = num_heads, fused
        if not fused:
            mask = torch.tril(torch.ones(block_size, block_size)).view(1, 1, block_size, block_size)
            self.register_buffer("bias", mask)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(C, dim=2)
        q, k, v = (part.view(B, T, self.num_heads, C // self.num_heads).transpose(1, 2) for part in (q, k, v))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0, is_causal=True)
        else:
            att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
            att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
            y = self.attn_dropout(F.softmax(att, dim=-1)) @ v
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C)))


class GPTBlock(nn.Module):
    def __init__(self, width: int, num_heads: int, block_size: int, fused: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = CausalSelfAttention(width, num_heads, block_size, fused)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class GPT(nn.Module):
    """As in nanoGPT: the head is the embedding, logits and loss are returned together."""

    def __init__(self, width: int, vocabulary: int, block_size: int, fused: bool) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocabulary, width),
                "wpe": nn.Embedding(block_size, width),
                "h": nn.ModuleList([GPTBlock(width, 2, block_size, fused)]),
                "ln_f": nn.LayerNorm(width),
            }
        )
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        pos = torch.arange(0, idx.size(1), dtype=torch.long, device=idx.device)
        x = self.transformer.wte(idx) + self.transformer.wpe(pos)
        for block in self.transformer.h:
            x = block(x)
        logits = self.lm_head(self.transformer.ln_f(x))
        if targets is None:
            return logits, None
        loss = F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)
        return logits, loss


def nano_gpt(n: int, width: int) -> Problem:
    tokens = torch.randint(13, (n, 7))

    def criterion(outputs: tuple[Tensor, None], targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs[0].reshape(-1, 13), targets.reshape(-1))

    return Problem(GPT(2 * width, 13, 8, True).eval(), criterion, tokens[:, :-1], tokens[:, 1:])


def nano_gpt_with_loss(n: int, width: int) -> Problem:
    tokens = torch.randint(13, (n, 7))
    model = GPT(2 * width, 13, 8, False).eval()
    inputs = {"idx": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()}
    return Problem(model, lambda outputs, _: outputs[1], inputs, None)


def nano_gpt_training(n: int, width: int) -> Problem:
    return nano_gpt_with_loss(n, width)._replace(model=GPT(2 * width, 13, 8, False))


class LSTMTagger(nn.Module):
    """Sentences padded to one length; packed for the LSTM, as public code does."""

    def __init__(self, width: int, packed: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, width, padding_idx=0)
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.hidden2tag = nn.Linear(2 * width, 3)
        self.packed = packed

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        x = self.embedding(tokens)
        if self.packed:
            x = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        x, _ = self.lstm(x)
        if self.packed:
            x, _ = nn.utils.rnn.pad_packed_sequence(x, batch_first=True, total_length=tokens.size(1))
        return self.hidden2tag(x)


def lstm_tagger(packed: bool):
    def make(n: int, width: int) -> Problem:
        lengths = torch.randint(2, 6, (n,))
        lengths[0] = 5
        tokens = torch.randint(1, 12, (n, 5)) * (torch.arange(5) < lengths[:, None])
        tags = labels(n, 3, 5).masked_fill(tokens == 0, -100)

        def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(outputs.view(-1, 3), targets.view(-1), ignore_index=-100)

        return Problem(LSTMTagger(width, packed), criterion, (tokens, lengths), tags)

    return make


class TutorialTagger(nn.Module):
    """One sentence at a time: the words are the first dimension, and the LSTM carries each to the next."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(12, width)
        self.lstm = nn.LSTM(width, width)
        self.hidden2tag = nn.Linear(width, 3)

    def forward(self, sentence: Tensor) -> Tensor:
        embeds = self.word_embeddings(sentence)
        lstm_out, _ = self.lstm(embeds.view(len(sentence), 1, -1))
        return F.log_softmax(self.hidden2tag(lstm_out.view(len(sentence), -1)), dim=1)


def tutorial_tagger(n: int, width: int) -> Problem:
    return Problem(TutorialTagger(2 * width), nn.NLLLoss(), torch.randint(12, (n,)), labels(n, 3))


class Experts(nn.Module):
    """The two best of four experts for each token, gathered and put back as Mixtral's reference code does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.gate = nn.Linear(3, width), nn.Linear(width, 4, bias=False)
        self.experts = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
                for _ in range(4)
            ]
        )
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        tokens = h.view(-1, h.shape[-1])
        weights, chosen = torch.topk(self.gate(tokens).softmax(-1), 2)
        weights = weights / weights.sum(-1, keepdim=True)
        results = torch.zeros_like(tokens)
        for i, expert in enumerate(self.experts):
            index, nth = torch.where(chosen == i)
            results[index] += weights[index, nth, None] * expert(tokens[index])
        return self.head(results.view_as(h).mean(1))


def experts(n: int, width: int) -> Problem:
    return Problem(Experts(2 * width), nn.MSELoss(), torch.randn(n, 4, 3), torch.randn(n, 2))


class EinsumAttention(nn.Module):
    """Weights of heads as tensors of three dimensions, all maps by einsum, as in code written after JAX."""

    def __init__(self, width: int, num_heads: int = 2) -> None:
        super().__init__()
        size = width // num_heads
        self.embed = nn.Parameter(torch.randn(9, width) / 3)
        self.query, self.key, self.value = (
            nn.Parameter(torch.randn(width, num_heads, size) / width**0.5) for _ in range(3)
        )
        self.out = nn.Parameter(torch.randn(num_heads, size, width) / width**0.5)
        self.scale = nn.Parameter(torch.ones(width))
        self.up, self.down = (
            nn.Parameter(torch.randn(a, b) / a**0.5) for a, b in ((width, 2 * width), (2 * width, width))
        )

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed[tokens]
        h = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        q, k, v = (torch.einsum("btd,dhk->bthk", h, w) for w in (self.query, self.key, self.value))
        scores = torch.einsum("bthk,bshk->bhts", q, k) / q.shape[-1] ** 0.5
        mixed = torch.einsum("bhts,bshk->bthk", scores.softmax(-1), v)
        x = x + torch.einsum("bthk,hkd->btd", mixed, self.out)
        x = x + F.gelu(x @ self.up) @ self.down
        return torch.einsum("btd,vd->btv", x, self.embed)


def einsum_attention(n: int, width: int) -> Problem:
    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.transpose(1, 2), targets)

    tokens = torch.randint(9, (n, 6))
    return Problem(EinsumAttention(2 * width), criterion, tokens[:, :-1], tokens[:, 1:])
