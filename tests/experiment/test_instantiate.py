"""From a config to objects."""

import torch
from omegaconf import OmegaConf
from torch import nn

from pipeline.experiment import build

OUTPUTS, LABELS = torch.tensor([[2.0, 0.0], [1.0, 3.0]], dtype=torch.float64), torch.tensor([1, 1])


def criterion_of(**options):
    return build(OmegaConf.create({"criterion": options}), "criterion")


def make_loss(weight=2.0):
    return lambda outputs, targets: weight * outputs.sum()


def test_a_function_of_outputs_and_targets_is_the_loss():
    smooth = criterion_of(_target_="torch.nn.functional.cross_entropy", label_smoothing=0.1)
    assert torch.equal(smooth(OUTPUTS, LABELS), nn.CrossEntropyLoss(label_smoothing=0.1)(OUTPUTS, LABELS))


def test_a_function_that_makes_a_loss_is_called():
    loss = criterion_of(_target_=f"{__name__}.make_loss", weight=3.0)
    assert loss(OUTPUTS, LABELS) == 18.0


def test_a_class_is_made():
    assert isinstance(criterion_of(_target_="torch.nn.CrossEntropyLoss"), nn.CrossEntropyLoss)
