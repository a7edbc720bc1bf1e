"""The networks. A model is any nn.Module that maps inputs (N, ...) to outputs (N, num_outputs).

Its samples must not mix, and what its layers do must have second derivatives: no BatchNorm in training mode, no fused
attention. The four here are differentiable twice in every mode of torch, forward over reverse included.
"""

from pipeline.model.cnn import CNN
from pipeline.model.libraries import hugging_face_net, timm_net
from pipeline.model.mlp import MLP
from pipeline.model.resnet import ResNet
from pipeline.model.transformer import Transformer
