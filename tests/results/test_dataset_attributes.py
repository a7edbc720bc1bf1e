"""A spectra file read with h5py alone, as by somebody who has nothing else."""

import h5py
import numpy as np
import pytest
from support.report_cases import bowl, spectra
from support.shard_cases import ATTRS, known, write

from pipeline.aggregate.stage import aggregate
from pipeline.cluster import Threads
from pipeline.results.dataset_attributes import DATASETS
from pipeline.spectrum import SLQ, Exact
from pipeline.system import RunFolder


def datasets(path):
    """Each dataset: its values and its attributes."""
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = (item[()], {key: value.decode() for key, value in item.attrs.items()})

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


@pytest.fixture(params=["exact", "slq"])
def path(request, tmp_path):
    method = {"exact": Exact(num_top=4), "slq": SLQ(num_top=4, num_bottom=2, num_steps=4, tolerance=1e-9)}
    folder = write(RunFolder(tmp_path), known())
    list(aggregate(folder, method[request.param], Threads(1)))
    return folder.spectrum(ATTRS["step"])


def test_the_density_integrates_to_one_over_what_its_attribute_names(path):
    with h5py.File(path) as file:
        values = file["density/values"]
        assert values.attrs["unit"].decode().startswith("1 / decade")
        coordinate = file[values.attrs["coordinate"].decode()]
        assert np.trapezoid(values[:], coordinate[:]) == pytest.approx(1, abs=1e-3)
        grid = file["density/grid"]
        assert grid.shape == coordinate.shape
        far = grid[:] > 0.1 * grid[:].max()
        steps = np.diff(np.log10(grid[:][far])) / np.diff(coordinate[:][far])
        assert steps == pytest.approx(1, abs=0.02)  # decades, as its unit says


def test_each_dataset_says_what_it_is_its_unit_and_its_coordinate(path):
    found = datasets(path)
    for name, (values, attrs) in found.items():
        assert attrs.keys() <= {"description", "unit", "shape", "coordinate"}, name
        assert len(attrs["description"]) > 10, name
        assert "unit" in attrs or values.dtype.kind == "S" or name == "parameters/shapes", name
        if (beside := attrs.get("coordinate")) is not None:
            count = len(found[beside.removeprefix("/")][0])
            assert count in values.shape or (name.endswith("offsets") and len(values) == count + 1), name


@pytest.mark.parametrize("file", [spectra(), bowl()], ids=["spectra", "landscape"])
def test_what_is_written_is_described(file, tmp_path):
    file.write(tmp_path / "file.h5")
    assert all(attrs["description"] for _, attrs in datasets(tmp_path / "file.h5").values())
    names = {name if name in DATASETS else "layers/*/eigenvalues" for name in file.arrays}
    assert names <= DATASETS.keys()


def test_units_are_powers_of_the_weight(tmp_path):
    """With weights in a unit that makes them c times as many, λ falls by c², the gradient by c, and the loss stays."""
    powers, c = {"loss": 0, "loss / weight": 1, "loss / weight^2": 2}, 8.0
    found = []
    for scale in (1.0, c):
        folder, problem = RunFolder(tmp_path / f"{scale}"), known()
        problem.matrices, problem.gradients = problem.matrices / scale**2, problem.gradients / scale
        list(aggregate(write(folder, problem), Exact(num_top=4), Threads(1)))
        found.append(datasets(folder.spectrum(ATTRS["step"])))
    before, after = found
    checked = [name for name, (_, attrs) in before.items() if attrs.get("unit") in powers]
    for name in set(checked) - {"mean/residuals"}:  # which are rounding alone
        values, attrs = before[name]
        gap = np.nanmax(np.abs(after[name][0] * c ** powers[attrs["unit"]] - values))
        assert gap <= 1e-9 * np.nanmax(np.abs(values)), name
    assert len(checked) > 12
