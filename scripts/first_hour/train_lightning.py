"""A checkpoint that Lightning itself writes, of an MLP inside a LightningModule."""

import lightning
import torch
from mine import Rings
from torch import nn


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 3))

    def training_step(self, batch, _):
        points, rings = batch
        return nn.functional.cross_entropy(self.net(points), rings)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 3))


if __name__ == "__main__":
    trainer = lightning.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.fit(Classifier(), torch.utils.data.DataLoader(Rings(), 50))
