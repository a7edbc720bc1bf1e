"""Models of torchvision and timm, tiny, with random weights. No weights are asked for, so nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from zoo.problem import Net, Problem, labels


def classifier(build: Callable[[int], nn.Module], size: int, parameters: Any = None):
    """A classifier of images of three colors, in evaluation mode."""

    def make(n: int, width: int) -> Problem:
        problem = Problem(
            build(width).eval(), nn.CrossEntropyLoss(), torch.randn(n, 3, size, size), labels(n, 3)
        )
        return problem._replace(parameters=parameters)

    return make


def torchvision_models() -> Any:
    from torchvision import models

    return models


def resnet(width: int) -> nn.Module:
    """It has 64 channels at least: users choose some of its weights."""
    models = torchvision_models()
    return models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=3)


def squeezenet(width: int) -> nn.Module:
    return torchvision_models().squeezenet1_1(num_classes=3)


def mobilenet_v2(width: int) -> nn.Module:
    settings = [[1, 8, 1, 1], [2, 8, 1, 2]]
    model = torchvision_models().MobileNetV2(
        3, width_mult=0.25, inverted_residual_setting=settings, round_nearest=4
    )
    return narrowed_head(model, width)


def narrowed_head(model: nn.Module, width: int) -> nn.Module:
    """The last convolution of a MobileNet has 1,280 channels at least; it is replaced, as in transfer learning."""
    last = model.features[-1]
    num_inputs = last[0].in_channels
    model.features[-1] = nn.Sequential(
        nn.Conv2d(num_inputs, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width), nn.ReLU6(inplace=True)
    )
    model.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(4 * width, 3))
    return model


def mobilenet_v3(width: int) -> nn.Module:
    from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

    settings = [
        InvertedResidualConfig(8, 3, 16, 8, True, "RE", 2, 1, 1.0),
        InvertedResidualConfig(8, 5, 16, 8, True, "HS", 1, 1, 1.0),
    ]
    return MobileNetV3(settings, last_channel=4 * width, num_classes=3)


def densenet(width: int) -> nn.Module:
    return torchvision_models().DenseNet(
        growth_rate=width, block_config=(2, 1), num_init_features=width, bn_size=1, num_classes=3
    )


def efficientnet(width: int) -> nn.Module:
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    settings = [MBConvConfig(1, 3, 1, 8, 8, 1, 1.0, 1.0), MBConvConfig(2, 3, 2, 8, 8, 1, 1.0, 1.0)]
    return EfficientNet(settings, dropout=0.2, num_classes=3, last_channel=4 * width)


def swin(width: int) -> nn.Module:
    models = torchvision_models()
    return models.SwinTransformer(
        patch_size=[2, 2], embed_dim=2 * width, depths=[2], num_heads=[2], window_size=[4, 4], mlp_ratio=2.0,
        num_classes=3,
    )  # fmt: skip


def convnext(width: int) -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(width, 2 * width, 1), CNBlockConfig(2 * width, None, 1)], num_classes=3)


def vit(width: int) -> nn.Module:
    models = torchvision_models()
    model = models.VisionTransformer(
        image_size=8,
        patch_size=4,
        num_layers=1,
        num_heads=2,
        hidden_dim=2 * width,
        mlp_dim=4 * width,
        num_classes=3,
    )
    nn.init.normal_(model.heads.head.weight)  # zeros at the start
    return model


def timm_model(name: str, **settings: Callable[[int], Any] | Any) -> Callable[[int], nn.Module]:
    """The class of timm of that name, "module.Class"; settings that are functions are given the width."""

    def build(width: int) -> nn.Module:
        from importlib import import_module

        module, _, kind = name.rpartition(".")
        chosen = {key: value(width) if callable(value) else value for key, value in settings.items()}
        model = getattr(import_module(f"timm.models.{module}"), kind)(num_classes=3, **chosen)
        nn.init.normal_(model.get_classifier().weight, std=0.3)  # zeros at the start, in some
        return model

    return build


def timm_resnet(width: int) -> nn.Module:
    from timm.models.resnet import BasicBlock, ResNet

    channels = (width, width, 2 * width, 2 * width)
    return ResNet(BasicBlock, (1, 1, 1, 1), 3, stem_type="deep", stem_width=width // 2, channels=channels)


def doubled(width: int) -> int:
    return 2 * width


TORCHVISION, TIMM = "torchvision", "timm"
USUAL = {"samples": "mean", "draws_targets": True}
VIT = {"img_size": 8, "patch_size": 4, "embed_dim": doubled, "depth": 1, "num_heads": 2, "mlp_ratio": 2}
VISION = [
    Net(
        "tv-resnet",
        classifier(resnet, 16, ["layer1.0.bn*", "layer3.0.bn1.*", "fc.bias"]),
        TORCHVISION,
        **USUAL,
        num_samples=8,
    ),
    Net(
        "tv-squeezenet",
        classifier(squeezenet, 20, ["features.3.expand1x1.bias", "features.4.squeeze.bias", "classifier.1.*"]),
        TORCHVISION,
        **USUAL,
        num_samples=8,
    ),
    Net("tv-mobilenet-v2", classifier(mobilenet_v2, 16), TORCHVISION, **USUAL),
    Net("tv-mobilenet-v3", classifier(mobilenet_v3, 16), TORCHVISION, **USUAL),
    Net("tv-densenet", classifier(densenet, 16), TORCHVISION, **USUAL),
    Net("tv-efficientnet", classifier(efficientnet, 16), TORCHVISION, **USUAL),
    Net("tv-swin", classifier(swin, 16), TORCHVISION, **USUAL, num_samples=4),
    Net("tv-convnext", classifier(convnext, 16), TORCHVISION, **USUAL),
    Net("tv-vit", classifier(vit, 8), TORCHVISION, **USUAL),
    Net("timm-resnet", classifier(timm_resnet, 32), TIMM, **USUAL),
    Net("timm-vit", classifier(timm_model("vision_transformer.VisionTransformer", **VIT), 8), TIMM, **USUAL),
    Net(
        "timm-vit-layer-scale",
        classifier(
            timm_model(
                "vision_transformer.VisionTransformer", **VIT, init_values=0.5, qk_norm=True, global_pool="avg"
            ),
            8,
        ),
        TIMM,
        **USUAL,
    ),
    Net(
        "timm-mixer",
        classifier(
            timm_model("mlp_mixer.MlpMixer", img_size=8, patch_size=4, embed_dim=doubled, num_blocks=1), 8
        ),
        TIMM,
        **USUAL,
    ),
    Net(
        "timm-convnext",
        classifier(
            timm_model("convnext.ConvNeXt", depths=(1, 1, 1, 1), dims=lambda width: (width,) * 4, patch_size=2), 32
        ),
        TIMM,
        **USUAL,
    ),
    Net(
        "timm-swin",
        classifier(
            timm_model(
                "swin_transformer.SwinTransformer", img_size=16, patch_size=2, embed_dim=doubled, depths=(2,),
                num_heads=(2,), window_size=4, mlp_ratio=2,
            ),
            16,
        ),
        TIMM,
        **USUAL,
        num_samples=4,
    ),
]  # fmt: skip
