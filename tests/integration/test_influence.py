"""The example of influence functions, as docs/howto/matrix_free.md tells of it."""

import re
import sys

import pytest
from support.command import PROJECT

sys.path.insert(0, str(PROJECT / "scripts"))
import influence
import torch


def test_wrong_labels_are_among_the_most_harmful_samples(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["influence.py", "--width", "16"])
    influence.main()
    told = capsys.readouterr().out
    number, found = map(
        int, re.search(r"of the (\d+) most harmful samples (\d+) have a wrong label", told).groups()
    )
    assert number == 70
    assert found >= 30  # 4 by chance


def test_the_change_is_that_of_leaving_a_sample_out():
    """Of a linear model with squared distances from its own outputs, the formula is exact to first order in 1 / N."""
    images, told, _, test_images, test_labels = influence.samples(0.05, 0)
    images, told = images[:200, ::8], told[:200]
    net = torch.nn.Linear(8, 10).double()
    damping = 0.3

    def fitted(chosen):
        with torch.no_grad():
            for weight in net.parameters():
                weight.zero_()
        optimizer = torch.optim.LBFGS(
            net.parameters(), lr=1, max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
        )

        def closure():
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(
                net(images[chosen]), told[chosen], reduction="sum"
            ) / len(images)
            loss = loss + damping / 2 * sum((weight**2).sum() for weight in net.parameters())
            loss.backward()
            return float(loss.detach())

        for _ in range(5):
            optimizer.step(closure)
        return float(torch.nn.functional.cross_entropy(net(test_images[:, ::8]), test_labels).detach())

    every = torch.ones(200, dtype=torch.bool)
    whole = fitted(every)
    change, _ = influence.influences(net, (images, told), (test_images[:, ::8], test_labels), damping)
    for sample in (3, 77, 150):
        without = every.clone()
        without[sample] = False
        assert fitted(without) - whole == pytest.approx(float(change[sample]) / 200, rel=0.1, abs=2e-6)
