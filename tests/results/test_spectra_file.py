"""The spectra and the landscape file: read as written, absent parts, damage, and names that nobody else spells."""

from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from support.report_cases import bowl, estimated, spectra

from pipeline.errors import DamagedFile
from pipeline.results import quantities
from pipeline.results.quantities import QUANTITIES
from pipeline.results.spectra_file import LandscapeFile, SpectraFile
from pipeline.shards.hdf5 import read_array_file, write_array_file

ROOT = Path(__file__).parents[2]
OWN = {"spectra_file.py", "dataset_attributes.py", "test_spectra_file.py", "test_dataset_attributes.py"}
OF_SHARDS = "parameters/"  # shards name their parameters alike, in a file of their own


def assert_equal(one, other):
    """Field by field, arrays with their dtype."""
    assert type(one) is type(other)
    for field in fields(one):
        mine, its = getattr(one, field.name), getattr(other, field.name)
        if is_dataclass(mine):
            assert_equal(mine, its)
        elif isinstance(mine, np.ndarray):
            assert mine.dtype == its.dtype
            np.testing.assert_array_equal(mine, its, err_msg=field.name)
        elif field.name == "eigenvalues":  # of layers
            assert list(mine) == list(its)
            for name, values in mine.items():
                np.testing.assert_array_equal(values, its[name], err_msg=name)
        else:
            assert mine == its, field.name


@pytest.mark.parametrize(
    "case", ["whole", "with an error", "from products", "without batches and density", "one weight"]
)
def test_a_spectra_file_is_read_as_it_was_written(tmp_path, case):
    file = spectra(num_layers=3)
    if case == "from products":
        file = estimated(num_layers=3)
    elif case == "with an error":
        file = replace(file, density=replace(file.density, standard_error=0.1 * file.density.values))
    elif case == "without batches and density":
        file = replace(file, batches=None, density=None)
    elif case == "one weight":
        file = replace(file, layers=replace(file.layers, shapes=((), (1,), (2, 3, 4))))
    file.write(tmp_path / "step-000120.h5")
    found = SpectraFile.read(tmp_path / "step-000120.h5")
    assert_equal(file, found)
    assert found.attrs == file.attrs
    assert found.metrics == {**file.numbers, "step": 120}
    assert (found.batches is None) == (case in {"without batches and density", "from products"})
    assert found.without_matrix == (case == "from products")


def test_cosines_of_the_gradient_are_those_of_angles_and_have_no_sign():
    vectors = np.eye(4)[:, :3] * np.array([1, -1, 1])
    mean = replace(spectra().mean, top_eigenvectors=vectors, gradient=np.array([3.0, 4.0, 0.0, 12.0]))
    np.testing.assert_allclose(mean.gradient_cosines, np.array([3, 4, 0]) / 13)
    np.testing.assert_allclose(
        replace(mean, gradient=1e-200 * mean.gradient).gradient_cosines, np.array([3, 4, 0]) / 13
    )
    assert np.isnan(replace(mean, gradient=np.zeros(4)).gradient_cosines).all()


def test_the_weights_that_take_part_in_a_vector_are_counted():
    vectors = np.array([[1, 0.5, 0.6], [0, 0.5, 0.8], [0, 0.5, 0], [0, -0.5, 0]], np.float32)
    mean = replace(spectra().mean, top_eigenvectors=vectors)
    np.testing.assert_allclose(mean.participation, [1, 4, 1 / (0.6**4 + 0.8**4)], rtol=1e-6)


@pytest.mark.parametrize("plane", [True, False])
def test_a_landscape_file_is_read_as_it_was_written(tmp_path, plane):
    file = bowl() if plane else replace(bowl(), plane=None)
    file.write(tmp_path / "step-000120.h5")
    assert_equal(file, LandscapeFile.read(tmp_path / "step-000120.h5"))


def test_batches_are_compared_where_there_are_two():
    assert spectra(num_batches=1).several_batches is None
    assert len(spectra(num_batches=2).several_batches) == 2
    assert replace(spectra(), batches=None).several_batches is None


def test_all_eigenvalues_of_a_batch_give_the_same_top():
    file = spectra()
    top = file.batches.eigenvalues
    every = np.sort(np.concatenate([top, top - 100], axis=1), axis=1)
    np.testing.assert_array_equal(replace(file.batches, eigenvalues=every).top(file.num_top), top)
    np.testing.assert_array_equal(file.batches.top(file.num_top), top)


@pytest.mark.parametrize("missing", ["mean/gradient", "batches/overlap", "density/grid", "step"])
def test_a_file_that_lacks_something_is_damaged_and_made_again(tmp_path, missing):
    path = tmp_path / "step-000120.h5"
    spectra().write(path)
    found = read_array_file(path)
    for held in (found.attrs, found.arrays):
        held.pop(missing, None)
    write_array_file(path, found.attrs, found.arrays)
    with pytest.raises(DamagedFile, match=rf"step-000120\.h5 is damaged \(it has no {missing}\): delete it"):
        SpectraFile.read(path)
    assert SpectraFile.read_if_sound(path) is None
    assert not path.exists()


def test_a_damaged_file_is_set_aside_and_told(tmp_path, caplog):
    path = tmp_path / "step-000120.h5"
    assert SpectraFile.read_if_sound(path) is None
    spectra().write(path)
    gradient = spectra().mean.gradient
    altered = path.read_bytes().replace(gradient.tobytes(), (gradient + 1).tobytes())
    path.write_bytes(altered)
    assert SpectraFile.read_if_sound(path) is None
    assert caplog.messages == [
        f"{path} is damaged (it is not what was written): it is now {path.name}.damaged; it is made again."
    ]
    assert [entry.name for entry in tmp_path.iterdir()] == [f"{path.name}.damaged"]
    assert (tmp_path / f"{path.name}.damaged").read_bytes() == altered


def test_names_of_arrays_are_spelled_in_one_module():
    groups = {name.partition("/")[0] + "/" for name in {**estimated().arrays, **bowl().arrays}} - {OF_SHARDS}
    groups.add("batches/")
    assert groups == {
        *("mean/", "batches/", "layers/", "modules/", "density/", "distribution/", "lines/", "plane/")
    }
    spelled = {
        f"{path.name}: {quote}{group}"
        for folder in ("pipeline", "scripts", "tests")
        for path in (ROOT / folder).rglob("*.py")
        if path.name not in OWN
        for group in groups
        for quote in "\"'"
        if f"{quote}{group}" in path.read_text(encoding="utf-8")
    }
    assert spelled == set()


def test_what_the_report_tells_of_a_file_is_in_it():
    text = (ROOT / "pipeline" / "report" / "page" / "report.html.jinja").read_text(encoding="utf-8")
    told = [part.partition('"]')[0] for part in text.split('file["')[1:]]
    assert len(told) == 4
    assert set(told) <= set(spectra().arrays)


def test_every_selection_is_of_registered_quantities():
    selections = [value for value in vars(quantities).values() if isinstance(value, tuple) and value]
    keys = {key for selection in selections for key in selection if isinstance(key, str)}
    assert len(keys) >= 15
    assert keys <= QUANTITIES.keys()


def test_no_name_of_a_quantity_stands_elsewhere():
    """A number is registered once: its sentence is in no other module and in no template."""
    for path in (ROOT / "pipeline").rglob("*"):
        if path.suffix in (".py", ".jinja", ".js") and path.name != "quantities.py":
            text = path.read_text(encoding="utf-8")
            assert not [q.key for q in QUANTITIES.values() if f'"{q.sentence}"' in text], path


def test_quantities_are_written_for_terminals_and_pages():
    share, error, rank = (
        QUANTITIES[key] for key in ("test_accuracy", "largest_probe_error", "effective_rank")
    )
    assert (share.plain(0.5), share.text(0.5)) == ("50.00%", "50.0 %")
    assert (error.plain(2e-6), error.text(2e-6)) == ("2.0e-06", "2.0×10⁻⁶")
    assert (rank.plain(61.123), rank.text(61.123), rank.title) == ("61.1", "61.12", "Effective rank")
    assert QUANTITIES["num_samples"].plain(1438) == "1,438"
