"""Evidence tells experiments apart, and does not tell machines apart: last digits, threads, and a perfect fit."""

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.objective.batch import Batch
from pipeline.objective.objective import objective_of
from pipeline.objective.observation import AGREEMENT, hash_of, hashes_of, observed, observed_first
from pipeline.system.evidence import OtherExperiment, check_evidence, difference, shared_evidence
from pipeline.training import evaluate, observe

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def net(dtype=torch.float64, activation=nn.Tanh):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 16), activation(), nn.Linear(16, 3)).to(dtype)


def samples(number=11, dtype=torch.float64):
    generator = torch.Generator().manual_seed(4)
    return Batch(
        torch.randn(number, 4, dtype=dtype, generator=generator),
        torch.randint(3, (number,), generator=generator),
    )


def of(model, batch, criterion=F.cross_entropy):
    return observed("batch", *objective_of(model, criterion), batch)


def scaled(model, by):
    """As another machine's rounding might: every weight moved by a few units in the last place."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + by * torch.randn_like(weight))
    return model


@DTYPES
@pytest.mark.parametrize("number", [1, 11, 300])
def test_last_digits_are_no_other_model_and_few_more_are(dtype, number):
    batch, eps = samples(number, dtype), torch.finfo(dtype).eps
    here = of(net(dtype), batch)
    assert difference(here, of(scaled(net(dtype), 4 * eps), batch)) is None
    assert difference(here, of(scaled(net(dtype), 100 * AGREEMENT[dtype]), batch))[0] == "another model"


@DTYPES
def test_a_perfect_fit_has_a_loss_of_nothing_that_counts_in_no_last_digit(dtype):
    """One sample, whose loss is a last digit itself."""
    model, batch = net(dtype), samples(1, dtype)
    with torch.no_grad():
        model[2].bias[batch.targets[0]] += 16.0
    moved = pickle.loads(pickle.dumps(model))
    here, there = of(model, batch), of(scaled(moved, 4 * torch.finfo(dtype).eps), batch)
    assert 0 < here["batch_losses"][0] < 1e-5
    assert difference(here, there) is None


def test_threads_are_no_other_model():
    wide = nn.Sequential(nn.Linear(512, 700), nn.Tanh(), nn.Linear(700, 3)).float()
    batch, threads = Batch(torch.randn(999, 512), torch.randint(3, (999,))), torch.get_num_threads()
    try:
        found = []
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(of(wide, batch))
    finally:
        torch.set_num_threads(threads)
    assert difference(found[0], found[1]) is None
    assert difference(found[0], found[2]) is None


@DTYPES
def test_what_was_edited_is_named(dtype):
    batch, model = samples(11, dtype), net(dtype)
    here = of(model, batch)
    assert difference(here, of(model, batch)) is None
    assert difference(here, of(net(dtype, nn.Sigmoid), batch))[0] == "another model"
    doubled = of(model, batch, lambda outputs, targets: 1.01 * F.cross_entropy(outputs, targets))
    assert difference(here, doubled)[0] == "another criterion"

    class Detached(nn.Sequential):
        def forward(self, inputs):
            return self[2](self[1](self[0](inputs)).detach())

    what, where = difference(here, of(Detached(*model), batch))
    assert (what, where.partition(" ")[0]) == ("another model", "derivatives")


def test_a_criterion_that_differs_for_misfits_alone_is_another():
    """The net fits its samples so well that both say the same of them."""
    model = nn.Identity()
    model.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    batch = Batch(60 * torch.eye(3, dtype=torch.float64), torch.arange(3))

    def clamped(outputs, targets):
        return F.cross_entropy(outputs, targets).clamp(max=1.0)

    assert F.cross_entropy(*batch) == clamped(*batch)
    assert difference(of(model, batch), of(model, batch, clamped))[0] == "another criterion"


def test_outputs_in_containers_and_masked_by_infinities_are_compared():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, inputs):
            outputs = self.net(inputs)
            masked = outputs.masked_fill(torch.tensor([False, True, False]), -torch.inf)
            return {"masked": masked, "plain": (outputs,)}

    def criterion(outputs, targets):
        return F.cross_entropy(outputs["plain"][0], targets)

    here = of(Two(), samples(), criterion)
    assert difference(here, of(Two(), samples(), criterion)) is None
    other = Two()
    with torch.no_grad():
        other.net[0].weight[0, 0] += 1e-3
    assert difference(here, of(other, samples(), criterion))[0] == "another model"


def test_a_criterion_that_takes_no_other_samples_outputs_is_observed_all_the_same():
    known = net()(samples().inputs)

    def criterion(outputs, targets):
        if not torch.allclose(outputs, known):
            raise ValueError("not mine")
        return F.cross_entropy(outputs, targets)

    here = of(net(), samples(), criterion)
    assert difference(here, of(net(), samples(), criterion)) is None


def test_the_checksum_is_of_every_bit_dtype_shape_and_place():
    batch = samples()
    assert hash_of(batch) == hash_of(samples()) == hash_of(Batch(*map(torch.clone, batch)))
    inputs, targets = batch
    moved = inputs.clone()
    moved[3, 2] = torch.nextafter(moved[3, 2], torch.tensor(9.0, dtype=moved.dtype))
    others = [
        Batch(moved, targets),
        Batch(inputs.float(), targets),
        Batch(inputs.reshape(11, 2, 2), targets),
        Batch(inputs.flip(0), targets),
        Batch(inputs, targets.int()),
        Batch(inputs, targets.flip(0)),
        Batch({"x": inputs}, targets),
        Batch((inputs,), targets),
        Batch({"y": inputs}, targets),
        Batch(inputs[:10], targets[:10]),
    ]
    assert len({hash_of(each) for each in (batch, *others)}) == 11
    one, other = {"a": inputs, "b": inputs + 1}, {"b": inputs + 1, "a": inputs}
    assert hash_of(Batch(one, targets)) == hash_of(Batch(other, targets))
    assert hash_of(Batch(inputs.t().contiguous().t(), targets)) == hash_of(batch)
    flags = Batch(inputs > 0, targets)
    assert hash_of(flags) != hash_of(Batch((inputs > 0).byte(), targets))
    assert hashes_of(batch, None) == {"train_hash": hash_of(batch), "test_hash": ""}


def test_a_model_is_observed_and_left_as_it_is():
    """Dropout in training mode, a buffer that every call moves, and torch's random numbers."""

    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.drop = net(), nn.Dropout(0.5)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, inputs):
            self.calls += 1
            return self.net(self.drop(inputs)) + self.calls + torch.rand(())

    model, batch = Counted(), samples()
    before = torch.get_rng_state()
    first, second = (observe(model, F.cross_entropy, batch) for _ in range(2))
    assert difference(first, second) is None
    assert first == second
    assert model.calls == 0
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), before)
    assert evaluate(model, F.cross_entropy, batch)
    assert observed_first(nn.Identity(), lambda *_: torch.ones(2), lambda *_: torch.ones(()), batch)


def test_what_one_of_two_does_not_tell_is_let_pass():
    here = {**hashes_of(samples(), samples(5)), **of(net(), samples())}
    for key in here:
        rest = {name: value for name, value in here.items() if name != key}
        if not key.endswith("_losses") and key != "batch_outputs":
            assert difference(here, rest) is None
    assert difference(here, {}) is None
    assert shared_evidence(here) == {key: here[key] for key in ("train_hash", "agreement")}


def test_the_line_names_what_differs_the_file_and_the_remedy():
    told, mine = {"train_hash": "a"}, {"train_hash": "b"}
    with pytest.raises(OtherExperiment) as caught:
        check_evidence(Path("outputs/run"), told, mine)
    line = (
        "outputs/run was made with other data than this run has (its training samples differ): "
        "one folder holds one experiment; choose another with hydra.run.dir=FOLDER."
    )
    assert str(caught.value) == str(pickle.loads(pickle.dumps(caught.value))) == line
