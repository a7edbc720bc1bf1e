"""Samples in the forms that people have them: what is read is what they hold, whatever the form."""

from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from pipeline.data import Own, samples_of
from pipeline.errors import PipelineError

N = 20
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, 2, 3)).astype(np.float32), np.arange(N) % 4
ORDER = np.random.default_rng(0).permutation(N)  # as the options' split_seed=0 draws it


class Pairs(Dataset):
    def __init__(self, give=lambda x, y: (x, y), x=X, y=Y):
        self.give, self.x, self.y = give, x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.give(self.x[i], self.y[i])


class Stream(IterableDataset):
    def __iter__(self):
        while True:
            yield from zip(X, Y, strict=True)


class LikeHuggingFace:
    """The part of `datasets.Dataset` that is used."""

    features = {"image": None, "label": SimpleNamespace(num_classes=7)}  # noqa: RUF012

    def __len__(self):
        return N

    def __getitem__(self, i):
        raise AssertionError("several at once are quicker")

    def __getitems__(self, numbers):
        return [{"image": X[i], "label": int(Y[i])} for i in numbers]

    def with_format(self, kind):
        assert kind == "numpy"
        return self


def image_like(array):
    """As a picture of PIL: no array, and becomes one."""
    return SimpleNamespace(__array_interface__=np.ascontiguousarray(array).__array_interface__, keeps=array)


FORMS = {
    "dataset": Pairs(),
    "tensors": TensorDataset(torch.tensor(X), torch.tensor(Y)),
    "lists": Pairs(lambda x, y: [x.tolist(), int(y)]),
    "named tuples": Pairs(namedtuple("Sample", "x y")),
    "dicts": Pairs(lambda x, y: {"image": torch.tensor(x), "label": int(y)}),
    "columns of a table": {"image": X, "label": Y},
    "huggingface": LikeHuggingFace(),
    "arrays": (X, Y),
    "tensors in a list": [torch.tensor(X), torch.tensor(Y)],
    "loader": DataLoader(Pairs(), batch_size=8),
    "shuffled loader": DataLoader(Pairs(), batch_size=8, shuffle=True, drop_last=True),
    "loader with a collate function": DataLoader(
        Pairs(),
        8,
        collate_fn=lambda items: tuple(torch.tensor(np.array(part)) for part in zip(*items, strict=True)),
    ),
    "object with train": SimpleNamespace(train=(X, Y)),
    "mapping with train": {"train": Pairs()},
}


@pytest.mark.parametrize("form", FORMS)
def test_samples_are_read_in_every_form(form):
    samples, batch_size = samples_of(FORMS[form], {"test_fraction": 0.3, "split_seed": 0})
    assert batch_size == (8 if "loader" in form else 256)
    np.testing.assert_array_equal(samples.test.inputs, X[ORDER[:6]])
    np.testing.assert_array_equal(samples.train.inputs, X[ORDER[6:]])
    np.testing.assert_array_equal(samples.train.targets, Y[ORDER[6:]])
    assert samples.train.targets.dtype == torch.int64
    assert samples.input_shape == (2, 3)
    assert samples.num_outputs == (7 if form == "huggingface" else 4)


def test_only_the_samples_that_are_needed_are_read():
    seen = []
    data = Pairs(lambda x, y: seen.append(y) or (x, y), y=np.arange(N) % 2)
    Own(num_samples=3, test_fraction=0.1).of(data)
    assert len(seen) == 5


def test_test_samples_that_are_given_are_taken():
    for given in (
        {"train": Pairs(), "validation": Pairs(x=X[:5], y=Y[:5])},
        (Pairs(), Pairs(x=X[:5], y=Y[:5])),
    ):
        samples = Own().of(given)
        assert samples.train.num_samples == N
        np.testing.assert_array_equal(samples.test.inputs, X[:5])


def test_a_stream_gives_its_first_samples():
    samples = Own(num_samples=8, test_fraction=0.2).of(Stream())
    assert (samples.train.num_samples, samples.test.num_samples) == (8, 2)
    first = {tuple(x.flatten().tolist()) for x in X[:11]}
    assert {tuple(x.flatten().tolist()) for x in samples.train.inputs} <= first
    assert Own(num_samples=8, test_fraction=0).of(DataLoader(Stream(), 4)).train.num_samples == 8
    assert Own(num_samples=8, test_fraction=0).of(pair for pair in Stream()).train.num_samples == 8


def test_a_sampler_chooses():
    some = DataLoader(Pairs(), 4, sampler=SubsetRandomSampler([1, 5, 9]))
    samples = Own(test_fraction=0).of(some)
    assert sorted(samples.train.inputs.flatten(1).tolist()) == sorted(X[[1, 5, 9]].reshape(3, -1).tolist())
    drawn = DataLoader(Pairs(), 4, sampler=WeightedRandomSampler([1.0] * N, 30))
    one, other = Own(test_fraction=0).of(drawn), Own(test_fraction=0).of(drawn)
    assert one.train.num_samples == 30
    assert torch.equal(one.train.inputs, other.train.inputs)


def test_what_samples_draw_at_random_is_the_same_again_and_leaves_other_draws_alone():
    noisy = Pairs(lambda x, y: (x + np.random.normal(size=x.shape) + torch.rand(2, 3).numpy(), y))
    torch.manual_seed(5)
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    one, state = Own().of(noisy), torch.get_rng_state()
    torch.rand(1)
    other = Own().of(noisy)
    assert torch.equal(one.train.inputs, other.train.inputs)
    torch.manual_seed(5)
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(before, np.random.get_state()[1])


def test_columns_are_chosen_by_name_and_several_inputs_become_a_mapping():
    table = {"ids": np.arange(N * 3).reshape(N, 3), "mask": np.ones((N, 3), bool), "kind": Y}
    samples = Own(inputs=["ids", "mask"], targets="kind", test_fraction=0).of(table)
    assert {name: value.dtype for name, value in samples.train.inputs.items()} == {
        "ids": torch.int64,
        "mask": torch.bool,
    }
    np.testing.assert_array_equal(samples.train.inputs["ids"], table["ids"][ORDER])
    one = Own(inputs="ids", targets="ids", test_fraction=0).of(table).train
    assert torch.equal(one.inputs, one.targets)
    assert isinstance(Own(inputs=["ids"], targets="kind").of(table).train.inputs, dict)


def test_images_are_brought_into_torchs_form():
    pixels = RNG.integers(0, 256, (N, 4, 5, 3)).astype(np.uint8)
    pixels[0, 0, 0] = 255
    kept = Own(test_fraction=0).of((pixels, Y)).train.inputs
    assert kept.dtype == torch.int64
    np.testing.assert_array_equal(kept, pixels[ORDER])
    made = Own(test_fraction=0, channels_last=True, scale=True).of((pixels, Y))
    assert (made.input_shape, made.train.inputs.dtype) == ((3, 4, 5), torch.float32)
    np.testing.assert_allclose(made.train.inputs, pixels[ORDER].transpose(0, 3, 1, 2) / 255, rtol=1e-6)
    floats = Own(test_fraction=0, as_float=True).of((pixels, Y)).train.inputs
    np.testing.assert_array_equal(floats, pixels[ORDER].astype(np.float32))
    assert floats.dtype == torch.float32


@pytest.mark.parametrize(
    "targets",
    [
        Y + 1,
        (Y + 1.0)[:, None],
        np.array(["ant", "bee", "cat", "dog"])[Y],
        np.array(["ant", "bee", "cat", "dog"], object)[Y],
        np.eye(4)[Y],
        np.eye(4, dtype=np.int64)[Y],
        Y * 10 - 20,
    ],
)
def test_classes_of_any_kind_are_numbered_from_0(targets, caplog):
    with caplog.at_level("INFO", "pipeline"):
        samples = Own(map_labels=True, test_fraction=0.3).of((X, targets))
    np.testing.assert_array_equal(samples.train.targets, Y[ORDER[6:]])
    assert samples.num_outputs == 4
    assert "become 0 to 3." in caplog.text


def test_the_protocol_of_load_goes_on():
    data = SimpleNamespace(
        batch_size=5, load=lambda: SimpleNamespace(train=(torch.tensor(X), torch.tensor(Y)))
    )
    samples, batch_size = samples_of(data, {})
    assert (samples.train.num_samples, batch_size) == (N, 5)
    with pytest.raises(
        PipelineError, match=r"data\.scale: SimpleNamespace, which has a method load, takes no such"
    ):
        samples_of(data, {"scale": True})


class Breaks(Pairs):
    def __getitem__(self, i):
        return {}["image"]


RAGGED = Pairs(lambda x, y: (x[: 1 + y % 2], y))
MISTAKES = {
    "a number": (
        7,
        {},
        r"data: int is nothing that samples can be read from: give a torch Dataset or DataLoader",
    ),
    "one array": (X, {}, r"data: ndarray is nothing that samples can be read from"),
    "nothing": (None, {}, r"data: NoneType is nothing that"),
    "a dataset that raises": (
        Breaks(),
        {},
        r"data: Breaks\[\d+\] raises KeyError: 'image' \(.*test_own\.py, line \d+\): mend it there",
    ),
    "an empty dataset": (Pairs(x=X[:0]), {}, r"data: 0 samples with .* leave 0 for training"),
    "an iterable dataset": (
        Stream(),
        {},
        r"data: Stream is read from its beginning .* give data.num_samples=N",
    ),
    "ragged samples": (
        RAGGED,
        {},
        r"Pairs: sample \d+ has shape \(\d, 3\), sample \d+ has \(\d, 3\): .* pad",
    ),
    "ragged arrays": (
        (np.array([np.zeros(2), np.zeros(3)] * 10, object), Y),
        {},
        r"rows of different lengths: pad",
    ),
    "ragged lists": (([[1, 2], [3]] * 10, Y), {}, r"tuple: inputs hold rows of different lengths: pad"),
    "ragged batches": (
        DataLoader(RAGGED, 1, collate_fn=lambda items: (items[0][0][None], torch.tensor([items[0][1]]))),
        {},
        r"DataLoader: batch 1 has shape .* pad",
    ),
    "objects": (
        Pairs(lambda x, y: ({"a": 1}.keys(), y)),
        {},
        r"Pairs, sample \d+: inputs hold dict_keys, no numbers: choose other columns",
    ),
    "None in a sample": (Pairs(lambda x, y: (None, y)), {}, r"inputs hold NoneType, no numbers"),
    "dates": ((np.zeros(N, "M8[s]"), Y), {}, r"inputs hold datetime64\[s\], no numbers: convert"),
    "texts": (
        {"text": np.array(["a"] * N), "label": Y},
        {},
        r"data: inputs hold texts: give numbers, such as ids of tokens",
    ),
    "three things": (Pairs(lambda x, y: (x, x, y)), {}, r"Pairs gives 3 things a sample: let it give a pair"),
    "no targets": (
        Pairs(lambda x, y: torch.tensor(x)),
        {},
        r"Pairs gives Tensor a sample: let it give a pair",
    ),
    "columns without targets": ({"a": X, "b": Y}, {}, r"has the columns a, b: name .* data.targets=NAME"),
    "a wrong column": (
        {"image": X, "label": Y},
        {"inputs": "imag"},
        r"data.inputs=imag: dict has no column of that name, did you mean image\?",
    ),
    "another wrong column": (
        {"image": X, "label": Y},
        {"targets": "zzz"},
        r"data.targets=zzz: dict has no column of that name: it has image, label\.",
    ),
    "names of pairs": (Pairs(), {"inputs": "x"}, r"Pairs gives pairs, whose parts have no names: leave out"),
    "samples that differ": (
        Pairs(lambda x, y: (x, y) if y else ({"a": x}, y)),
        {},
        r"Pairs: sample \d+ holds other things than sample \d+",
    ),
    "lengths": ((X, Y[:5]), {}, r"lengths differ \(20 inputs, 5 targets\)"),
    "NaN": (
        (np.where(np.arange(N)[:, None, None] == 13, np.nan, X), Y),
        {"test_fraction": 0},
        r"train inputs are NaN or infinite in 1 of 20 samples, the first one number 13:",
    ),
    "negative labels": (
        (X, Y - 1),
        {},
        r"labels run from -1 to 2: data.map_labels=true numbers the classes from 0",
    ),
    "samples that do not count": (
        (X, np.where(np.arange(N) < 3, -100, Y)),
        {},
        r"samples have the label -100, which losses do not count: leave these samples out",
    ),
    "texts as labels": (
        (X, np.array(list("abcd"))[Y]),
        {},
        r"texts \(a, b, c, …\): data.map_labels=true numbers",
    ),
    "too few outputs": (
        (X, Y),
        {"num_outputs": 3},
        r"labels run from 0 to 3, but data.num_outputs=3 allows 0 to 2",
    ),
    "values as classes": (
        (X, Y + 0.5),
        {"map_labels": True},
        r"map_labels=true takes classes, targets hold 1\.5",
    ),
    "rows as classes": (
        (X, X[:, 0]),
        {"map_labels": True},
        r"one class a sample, targets have shape \(16, 3\)",
    ),
    "no images": (
        (X, Y),
        {"channels_last": True},
        r"data.channels_last=true: images .* inputs have shape \(16, 2, 3\)",
    ),
    "scaled pixels": (
        (np.abs(X) / 10, Y),
        {"scale": True},
        r"data.scale=true takes pixels of 0\.\.255, inputs run from 0",
    ),
    "an option of another type": ((X, Y), {"scale": "yes"}, r"data.scale='yes': give true or false"),
    "names of another type": ((X, Y), {"inputs": 3}, r"data.inputs=3: give a name such as x, or a list"),
    "a number of arrays": ((np.float64(3), Y), {}, r"data: tuple holds a single number: give arrays"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_line(mistake):
    given, options, message = MISTAKES[mistake]
    with pytest.raises(PipelineError, match=message) as told:
        samples_of(given, options)
    assert "\n" not in str(told.value)
