"""What newcomers' first programs hold, mistakes among it; `python mine.py` writes files of theirs."""

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset


class Points(Dataset):
    """30 points of the plane in three classes."""

    def __init__(self, one_hot=False, text=False, nan=False, broken=False, ragged=False, empty=False):
        self.x = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
        self.y = torch.arange(30) % 3
        if nan:
            self.x[7, 1] = float("nan")
        if one_hot:
            self.y = nn.functional.one_hot(self.y, 3)
        self.text, self.broken, self.ragged, self.empty = text, broken, ragged, empty

    def __len__(self):
        return 0 if self.empty else len(self.x)

    def __getitem__(self, i):
        if self.broken and i == 11:
            raise OSError("image 11 is truncated")
        if self.ragged:
            return torch.zeros(2 + i % 2), self.y[i]
        return self.x[i], "abc"[self.y[i]] if self.text else self.y[i]


class Stream(IterableDataset):
    def __iter__(self):
        yield from Points()


class Net(nn.Module):
    def __init__(self, width=2):
        super().__init__()
        self.body, self.head = nn.Linear(width, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


class TwoHeads(Net):
    def forward(self, x):
        return super().forward(x), super().forward(x).sum(1)


class Decided(Net):
    def forward(self, x):
        return super().forward(x).argmax(1).float()


class PerSample(nn.Module):
    def forward(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets, reduction="none")


def numpy_loss(outputs, targets):
    return torch.tensor(np.mean(outputs.detach().numpy()))


if __name__ == "__main__":
    np.savez("points.npz", X=np.random.rand(30, 2), y=np.arange(30) % 3)
    np.savez("short.npz", x=np.random.rand(30, 2), y=np.arange(29) % 3)
    torch.save(Net(5).state_dict(), "other.pt")
    torch.save(Net(), "whole.pt")
    torch.save(Net().state_dict(), "epoch=3.pt")
