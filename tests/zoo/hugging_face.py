"""Models of the library transformers, tiny, with random weights made from their config classes.

It is one file, long as it is, since it is one table: one model after the other, by its config.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from zoo.problem import Net, Problem, labels, own_loss

VOCABULARY = 17


def made(name: str, **settings: Any) -> Any:
    """The model of that class in evaluation mode; its config class is the one that the library gives it."""
    import transformers

    kind = getattr(transformers, name)
    return kind(kind.config_class(**settings)).eval()


def tokens(n: int, length: int = 6) -> Tensor:
    return torch.randint(3, VOCABULARY, (n, length))


def next_token_loss(outputs: Any, targets: Tensor) -> Tensor:
    """On the logits, as users write it who do not hand labels to the model."""
    return F.cross_entropy(outputs.logits[:, :-1].reshape(-1, VOCABULARY), targets[:, 1:].reshape(-1))


def logits_loss(outputs: Any, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.logits, targets)


def causal(name: str, settings: Callable[[int], dict[str, Any]], with_labels: bool = False):
    """A language model on `input_ids`, with its own loss or with the user's."""

    def make(n: int, width: int) -> Problem:
        model, ids = made(name, vocab_size=VOCABULARY, **settings(width)), tokens(n)
        if with_labels:
            return Problem(model, own_loss, {"input_ids": ids, "labels": ids.clone()}, None)
        return Problem(model, next_token_loss, {"input_ids": ids}, ids)

    return make


def gpt2(width: int) -> dict[str, Any]:
    return {
        "n_embd": 2 * width,
        "n_layer": 1,
        "n_head": 2,
        "n_positions": 8,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


def llama_like(width: int) -> dict[str, Any]:
    """Two query heads share a head of keys and values."""
    return {
        "hidden_size": 2 * width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": width,
        "max_position_embeddings": 16,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def mixtral(width: int) -> dict[str, Any]:
    return llama_like(width) | {"num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": None}


def neox(width: int) -> dict[str, Any]:
    settings = llama_like(width)
    return {key: value for key, value in settings.items() if key not in ("num_key_value_heads", "head_dim")}


def bloom(width: int) -> dict[str, Any]:
    return {"hidden_size": 2 * width, "n_layer": 1, "n_head": 2}


def opt(width: int) -> dict[str, Any]:
    return {
        "hidden_size": 2 * width,
        "word_embed_proj_dim": 2 * width,
        "ffn_dim": 4 * width,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 8,
        "pad_token_id": 1,
    }


def rwkv_model(n: int, width: int) -> Problem:
    """Embeddings as after training: at the start they are near zero, and a norm follows."""
    problem = causal("RwkvForCausalLM", rwkv)(n, width)
    torch.nn.init.normal_(problem.model.get_input_embeddings().weight)
    return problem


def mamba(width: int) -> dict[str, Any]:
    return {
        "hidden_size": 2 * width,
        "num_hidden_layers": 1,
        "state_size": 4,
        "conv_kernel": 3,
        "time_step_rank": 2,
    }


def rwkv(width: int) -> dict[str, Any]:
    return {
        "hidden_size": 2 * width,
        "attention_hidden_size": 2 * width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": 2,
        "context_length": 8,
        "rescale_every": 0,
        "use_cache": False,
    }


def bert_like(width: int) -> dict[str, Any]:
    return {
        "hidden_size": 2 * width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
    }


def distilbert(width: int) -> dict[str, Any]:
    return {
        "dim": 2 * width,
        "hidden_dim": 4 * width,
        "n_layers": 1,
        "n_heads": 2,
        "max_position_embeddings": 16,
    }


def tokenized(n: int) -> dict[str, Tensor]:
    """Sentences of different lengths, padded, with the mask that a tokenizer returns."""
    ids, lengths = tokens(n), torch.randint(3, 7, (n, 1))
    lengths[0] = 6
    mask = (torch.arange(6) < lengths).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


class Encoding(UserDict[str, Any]):
    """A mapping that is no dict, as the BatchEncoding of a tokenizer."""


def classifier(name: str, settings: Callable[[int], dict[str, Any]], form: Callable[[Any], Any] = dict):
    """A classifier of sentences; form: of the mapping that is handed over."""

    def make(n: int, width: int) -> Problem:
        model = made(name, vocab_size=VOCABULARY, num_labels=3, **settings(width))
        return Problem(model, logits_loss, form(tokenized(n)), labels(n, 3))

    return make


def batch_encoding(values: dict[str, Tensor]) -> Any:
    from transformers import BatchEncoding

    return BatchEncoding(values)


def masked_lm(n: int, width: int) -> Problem:
    model = made("BertForMaskedLM", vocab_size=VOCABULARY, **bert_like(width))
    inputs = tokenized(n)
    hidden = torch.rand(n, 6) < 0.3
    hidden[:, 0] = True
    targets = inputs["input_ids"].masked_fill(~hidden | (inputs["attention_mask"] == 0), -100)
    return Problem(model, own_loss, inputs | {"labels": targets}, None)


def question_answering(n: int, width: int) -> Problem:
    """Two vectors of logits; the loss is written by the user."""
    model = made("BertForQuestionAnswering", vocab_size=VOCABULARY, **bert_like(width))

    def criterion(outputs: Any, targets: tuple[Tensor, Tensor]) -> Tensor:
        start, end = targets
        return (F.cross_entropy(outputs.start_logits, start) + F.cross_entropy(outputs.end_logits, end)) / 2

    return Problem(model, criterion, tokenized(n), (labels(n, 3), labels(n, 3)))


def as_tuple(n: int, width: int) -> Problem:
    """`return_dict=False`: the outputs are a tuple, and a positional argument."""
    model = made("BertModel", vocab_size=VOCABULARY, return_dict=False, **bert_like(width))

    def criterion(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        return F.mse_loss(outputs[1][:, 0], targets)

    return Problem(model, criterion, tokens(n), torch.randn(n))


def seq2seq(name: str, settings: Callable[[int], dict[str, Any]]):
    def make(n: int, width: int) -> Problem:
        model = made(name, vocab_size=VOCABULARY, decoder_start_token_id=0, pad_token_id=0, **settings(width))
        return Problem(model, own_loss, tokenized(n) | {"labels": tokens(n, 4)}, None)

    return make


def t5(width: int) -> dict[str, Any]:
    return {
        "d_model": 2 * width,
        "d_kv": width,
        "d_ff": 4 * width,
        "num_layers": 1,
        "num_heads": 2,
        "relative_attention_num_buckets": 4,
        "relative_attention_max_distance": 8,
    }


def bart(width: int) -> dict[str, Any]:
    return {
        "d_model": 2 * width,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 4 * width,
        "decoder_ffn_dim": 4 * width,
        "max_position_embeddings": 16,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "forced_eos_token_id": None,
    }


def whisper(n: int, width: int) -> Problem:
    model = made(
        "WhisperForConditionalGeneration",
        vocab_size=VOCABULARY,
        num_mel_bins=4,
        d_model=2 * width,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        max_source_positions=5,
        max_target_positions=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return Problem(model, own_loss, {"input_features": torch.randn(n, 4, 10), "labels": tokens(n, 4)}, None)


def wav2vec2(n: int, width: int) -> Problem:
    """A convolution with weight norm, by parametrization, inside."""
    model = made(
        "Wav2Vec2ForSequenceClassification",
        vocab_size=VOCABULARY,
        hidden_size=2 * width,
        intermediate_size=4 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        conv_dim=(width, width),
        conv_stride=(4, 2),
        conv_kernel=(8, 3),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=width,
        num_labels=3,
    )
    return Problem(model, logits_loss, {"input_values": torch.randn(n, 64)}, labels(n, 3))


def images(name: str, size: int, **settings: Callable[[int], Any] | Any):
    """A classifier of `pixel_values`; settings that are functions are given the width."""

    def make(n: int, width: int) -> Problem:
        chosen = {key: value(width) if callable(value) else value for key, value in settings.items()}
        model = made(name, num_labels=3, num_channels=3, **chosen)
        return Problem(model, logits_loss, {"pixel_values": torch.randn(n, 3, size, size)}, labels(n, 3))

    return make


def clip(n: int, width: int) -> Problem:
    """The contrastive loss that the model returns compares all pairs of the batch."""
    part = bert_like(width) | {"projection_dim": width}
    del part["max_position_embeddings"]
    model = made(
        "CLIPModel",
        projection_dim=width,
        text_config=part
        | {
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 8,
            "bos_token_id": 0,
            "eos_token_id": 16,
            "pad_token_id": 1,
        },
        vision_config=part | {"image_size": 8, "patch_size": 4},
    )
    inputs = tokenized(n) | {"pixel_values": torch.randn(n, 3, 8, 8), "return_loss": True}
    return Problem(model, own_loss, inputs, None)


def segformer(n: int, width: int) -> Problem:
    """Classes of pixels, the logits brought to the size of the labels."""
    model = made(
        "SegformerForSemanticSegmentation",
        num_labels=3,
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[width, 2 * width],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=width,
    )
    inputs = {"pixel_values": torch.randn(n, 3, 8, 8), "labels": labels(n, 3, 8, 8)}
    return Problem(model, own_loss, inputs, None)


def patch_tst(n: int, width: int) -> Problem:
    """A forecast of series."""
    model = made(
        "PatchTSTForPrediction",
        num_input_channels=2,
        context_length=16,
        prediction_length=4,
        patch_length=4,
        patch_stride=4,
        num_hidden_layers=1,
        d_model=2 * width,
        ffn_dim=4 * width,
        num_attention_heads=2,
        loss="mse",
    )
    return Problem(
        model, own_loss, {"past_values": torch.randn(n, 16, 2), "future_values": torch.randn(n, 4, 2)}, None
    )


def heads(width: int) -> int:
    return 2 * width


def wider(width: int) -> int:
    return 4 * width


VIT = {
    "image_size": 8,
    "patch_size": 4,
    "hidden_size": heads,
    "intermediate_size": wider,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
TRANSFORMERS = "transformers"
HUGGING_FACE = [
    Net("hf-gpt2", causal("GPT2LMHeadModel", gpt2), TRANSFORMERS, samples="mean"),
    Net("hf-gpt2-labels", causal("GPT2LMHeadModel", gpt2, with_labels=True), TRANSFORMERS),
    Net("hf-llama", causal("LlamaForCausalLM", llama_like), TRANSFORMERS, samples="mean"),
    Net("hf-llama-labels", causal("LlamaForCausalLM", llama_like, with_labels=True), TRANSFORMERS),
    Net("hf-mistral", causal("MistralForCausalLM", llama_like), TRANSFORMERS, samples="mean"),
    Net("hf-qwen3", causal("Qwen3ForCausalLM", llama_like), TRANSFORMERS, samples="mean"),
    Net("hf-gemma2", causal("Gemma2ForCausalLM", llama_like), TRANSFORMERS, samples="mean"),
    Net("hf-phi", causal("PhiForCausalLM", neox), TRANSFORMERS, samples="mean"),
    Net(
        "hf-mixtral",  # its grouped products are there in single precision only
        causal("MixtralForCausalLM", mixtral),
        TRANSFORMERS,
        samples="mean",
        castable=False,
    ),
    Net(
        "hf-mixtral-eager",
        causal("MixtralForCausalLM", lambda width: mixtral(width) | {"experts_implementation": "eager"}),
        TRANSFORMERS,
        samples="mean",
    ),
    Net("hf-gpt-neox", causal("GPTNeoXForCausalLM", neox), TRANSFORMERS, samples="mean"),
    Net("hf-bloom", causal("BloomForCausalLM", bloom), TRANSFORMERS, samples="mean"),
    Net("hf-opt", causal("OPTForCausalLM", opt), TRANSFORMERS, samples="mean"),
    Net("hf-mamba", causal("MambaForCausalLM", mamba), TRANSFORMERS, samples="mean"),
    Net("hf-rwkv", rwkv_model, TRANSFORMERS, samples="mean"),
    Net("hf-bert", classifier("BertForSequenceClassification", bert_like), TRANSFORMERS, samples="mean"),
    Net(
        "hf-bert-userdict",
        classifier("BertForSequenceClassification", bert_like, Encoding),
        TRANSFORMERS,
        samples="mean",
    ),
    Net(
        "hf-bert-encoding",
        classifier("BertForSequenceClassification", bert_like, batch_encoding),
        TRANSFORMERS,
        samples="mean",
    ),
    Net("hf-bert-masked-lm", masked_lm, TRANSFORMERS),
    Net("hf-bert-answers", question_answering, TRANSFORMERS, samples="mean"),
    Net("hf-bert-tuple", as_tuple, TRANSFORMERS, samples="mean"),
    Net(
        "hf-distilbert",
        classifier("DistilBertForSequenceClassification", distilbert),
        TRANSFORMERS,
        samples="mean",
    ),
    Net(
        "hf-roberta",
        classifier("RobertaForSequenceClassification", bert_like),
        TRANSFORMERS,
        samples="mean",
    ),
    Net(
        "hf-albert",
        classifier(
            "AlbertForSequenceClassification",
            lambda width: bert_like(width) | {"embedding_size": width, "num_hidden_layers": 2},
        ),
        TRANSFORMERS,
        samples="mean",
    ),
    Net(
        "hf-deberta-v2",
        classifier(
            "DebertaV2ForSequenceClassification",
            lambda width: bert_like(width) | {"relative_attention": True, "pos_att_type": "p2c|c2p"},
        ),
        TRANSFORMERS,
        samples="mean",
    ),
    Net("hf-t5", seq2seq("T5ForConditionalGeneration", t5), TRANSFORMERS),
    Net("hf-bart", seq2seq("BartForConditionalGeneration", bart), TRANSFORMERS),
    Net("hf-whisper", whisper, TRANSFORMERS),
    Net("hf-wav2vec2", wav2vec2, TRANSFORMERS, samples="mean"),
    Net("hf-vit", images("ViTForImageClassification", 8, **VIT), TRANSFORMERS, samples="mean"),
    Net("hf-clip", clip, TRANSFORMERS),
    Net(
        "hf-convnext",
        images(
            "ConvNextForImageClassification",
            16,
            num_stages=2,
            depths=[1, 1],
            hidden_sizes=lambda width: [width, 2 * width],
            patch_size=2,
        ),
        TRANSFORMERS,
        samples="mean",
    ),
    Net(
        "hf-swin",
        images(
            "SwinForImageClassification",
            16,
            image_size=16,
            patch_size=2,
            window_size=4,
            depths=[2],
            num_heads=[2],
            embed_dim=heads,
            mlp_ratio=2.0,
        ),
        TRANSFORMERS,
        samples="mean",
        num_samples=4,
    ),
    Net(
        "hf-resnet",
        images(
            "ResNetForImageClassification",
            16,
            embedding_size=4,
            hidden_sizes=lambda width: [width, 2 * width],
            depths=[1, 1],
            layer_type="basic",
        ),
        TRANSFORMERS,
        samples="mean",
    ),
    Net("hf-segformer", segformer, TRANSFORMERS),
    Net("hf-patch-tst", patch_tst, TRANSFORMERS),
]
