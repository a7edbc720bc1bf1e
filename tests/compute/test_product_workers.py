"""Products that are dealt to workers: the numbers of one process, and the same bits whatever becomes of the workers."""

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import distributed
import numpy as np
import pytest
import yaml
from support.command import SMALL, succeed

from pipeline.cluster import Address, Local, Pool, Slurm, Threads
from pipeline.compute import matrix_free, product_workers
from pipeline.compute.matrix_free import estimate_spectra
from pipeline.compute.product_workers import ProductWorkers, evidence_of, num_product_workers, partial_product
from pipeline.config import settings_of
from pipeline.errors import PipelineError
from pipeline.experiment import as_config, build_experiment
from pipeline.operator import PartialSum, curvature_operator, parts_of, selection
from pipeline.results import SpectraFile
from pipeline.system import RunFolder, num_cores

CRITERION = ("criterion._target_=torch.nn.CrossEntropyLoss", "+criterion.ignore_index=1")
FEW = (
    "strategy=matrix_free",
    "strategy.num_trace_products=12",
    "spectrum=topk",
    "spectrum.num_top=1",
    "spectrum.num_bottom=0",
    "spectrum.tolerance=1e-3",
)
RUN = (*SMALL, *CRITERION, *FEW)  # batches of 16, 16 and 8 samples, of which another share counts in each


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two workers, and the scheduler's address."""
    with Local(2).open(tmp_path_factory.mktemp("workers") / ".dask"):
        yield distributed.default_client().cluster


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Options of the criterion to a function that makes a run folder with weights, and its experiment."""
    folders = {}

    def made(path, *criterion):
        if criterion not in folders:
            folders[criterion] = tmp_path_factory.mktemp("trained") / "run"
            succeed(folders[criterion], *RUN, *criterion, "stages=[train]")
        source, folder = RunFolder(folders[criterion]), RunFolder(path)
        settings = settings_of(source)
        settings["data"] = {key: settings["data"][key] for key in settings["data"] if key not in SIZES}
        folder.checkpoints.mkdir(parents=True)
        for step in source.checkpoint_steps():
            folder.checkpoint(step).write_bytes(source.checkpoint(step).read_bytes())
        return folder, build_experiment(as_config(settings))

    return made


SIZES = ("input_shape", "num_outputs")  # of the data, which says them itself


@pytest.fixture(autouse=True)
def certain(monkeypatch):
    """Every product is worth a file, and a busy machine makes no other way faster."""
    monkeypatch.setattr(matrix_free, "SHARE_OF_WRITING", 0.0)
    monkeypatch.setattr(selection, "CLEARLY", 1e9)


def estimated(folder, experiment, cluster):
    """What the spectra file holds. cluster: of Dask; None for this process alone."""
    chosen = Threads() if cluster is None else Address(cluster.scheduler_address)
    workers = ProductWorkers.of(chosen, experiment, folder)
    if workers is None:
        estimate_spectra(folder, experiment)
    else:
        with workers:
            estimate_spectra(folder, experiment, workers)
    return SpectraFile.read(folder.spectrum(experiment.last_step))


def same(one, other):
    assert one.arrays.keys() == other.arrays.keys()
    assert one.attrs == other.attrs
    for name, values in one.arrays.items():
        np.testing.assert_array_equal(values, other.arrays[name], err_msg=name)


@pytest.fixture(scope="module")
def expected(trained, cluster, tmp_path_factory):
    """By two workers that nothing happens to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "CLEARLY", 1e9)
        return estimated(*trained(tmp_path_factory.mktemp("whole") / "run"), cluster)


@pytest.mark.parametrize("criterion", [(), ("criterion.reduction=sum",)], ids=["mean", "sum"])
def test_workers_find_what_one_process_finds(trained, cluster, expected, tmp_path, criterion):
    alone = estimated(*trained(tmp_path / "alone", *criterion), None)
    dealt = expected if not criterion else estimated(*trained(tmp_path / "dealt", *criterion), cluster)
    scale = alone.mean.top_eigenvalues[0]
    for name in ("eigenvalues", "gradient"):
        np.testing.assert_allclose(
            getattr(dealt.mean, name), getattr(alone.mean, name), rtol=0, atol=1e-10 * scale
        )
    np.testing.assert_allclose(dealt.layers.trace, alone.layers.trace, rtol=0, atol=1e-10 * scale)
    for key in ("loss", "trace", "frobenius_norm", "num_samples"):
        assert dealt.numbers[key] == pytest.approx(alone.numbers[key], rel=1e-10), key


def test_a_worker_that_is_killed_at_its_part_changes_no_bit(
    trained, cluster, expected, tmp_path, monkeypatch
):
    done, multiply = [], Pool.map

    def killed_at_the_fifth(pool, function, arguments):
        done.append(pool)
        if len(done) != 5:
            return multiply(pool, function, arguments)
        victim = pool.places[0]
        pid = pool.client.run(os.getpid)[victim]
        os.kill(pid, signal.SIGSTOP)
        with ThreadPoolExecutor(1) as other:
            result = other.submit(multiply, pool, function, arguments)
            while not pool.client.processing([victim])[victim]:
                time.sleep(0.01)
            os.kill(pid, signal.SIGKILL)  # while it has work
            return result.result()

    monkeypatch.setattr(Pool, "map", killed_at_the_fifth)
    same(estimated(*trained(tmp_path / "run"), cluster), expected)
    assert len(done) > 10


class Cut(Exception):
    """The process ends here."""


def test_a_run_that_one_process_began_goes_on_in_one(trained, cluster, tmp_path, monkeypatch):
    folder, experiment = trained(tmp_path / "run")
    write = SpectraFile.write
    monkeypatch.setattr(SpectraFile, "write", lambda *_: (_ for _ in ()).throw(Cut))
    with pytest.raises(Cut):
        estimated(folder, experiment, None)
    monkeypatch.setattr(SpectraFile, "write", write)
    monkeypatch.setattr(product_workers, "opened", None)  # nobody asks for it
    estimated(folder, experiment, cluster)


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A worker's function in this process, of evidence, part and vectors; the operator; and the right evidence."""
    folder, experiment = trained(tmp_path / "run")
    monkeypatch.setattr(product_workers, "worker_share", lambda: 1.0)
    monkeypatch.setattr(product_workers, "experiment_of", lambda config: experiment)
    step, problem = experiment.last_step, experiment.problem
    problem.load(folder.checkpoint(step))
    pairs = [tuple(batch) for batch in experiment.batches()]
    operator = curvature_operator(problem.model, problem.criterion, pairs, verify=False)

    def product(evidence, part, vectors):
        return partial_product("", str(folder.path), step, json.dumps(evidence), part, vectors)

    return product, operator, evidence_of(experiment, step)


@pytest.mark.parametrize(
    ("changes", "differ"),
    [
        ({"batches": ["0"]}, "its batches"),
        ({"weights_hash": "0"}, "its weights"),
        ({"config_hash": "0"}, "its config"),
        ({"train_hash": "0"}, "its training samples"),
        ({"first_outputs": [1.0, 0.0, 0.0, 0.0]}, "its outputs for the same weights and samples"),
    ],
    ids=["batches", "weights", "config", "samples", "outputs"],
)
def test_a_worker_with_other_code_or_files_is_told(here, changes, differ):
    product, operator, evidence = here
    (part,) = parts_of(operator, 1)
    vectors = np.ones((operator.num_rows, 1))
    found = product(evidence, part, vectors) / sum(part.weights)
    np.testing.assert_allclose(found, operator.matvec(vectors), rtol=1e-12)
    with pytest.raises(
        PipelineError, match=rf"^a worker has other code or files than the run \({differ} differ\)"
    ):
        product(evidence | changes, part, vectors)


def test_a_worker_with_several_parts_takes_no_more_memory_for_each(here, monkeypatch):
    product, operator, evidence = here
    made, of = [], PartialSum.of
    monkeypatch.setattr(
        PartialSum, "of", lambda *args, share: (made.append(share), of(*args, share=share))[1]
    )
    parts = parts_of(operator, 3)
    for part in (*parts, *parts):
        product(evidence, part, np.ones((operator.num_rows, 1)))
    assert made == [1.0, 0.5, 0.25]


def test_threads_of_a_worker_take_its_model_in_turn(monkeypatch):
    inside, most = [], []

    def slow(vectors):
        inside.append(0)
        most.append(len(inside))
        time.sleep(0.02)
        inside.pop()
        return vectors

    monkeypatch.setattr(product_workers, "_sums", lambda *_: {"one": slow, "other": slow})
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(partial_product, "", "", 0, "", part, 7) for part in ("one", "other")]
        assert [call.result() for call in calls] == [7, 7]
    assert most == [1, 1]


def test_workers_with_other_settings_are_told_by_the_run(trained, cluster, tmp_path):
    folder, experiment = trained(tmp_path / "run")
    workers = ProductWorkers.of(Address(cluster.scheduler_address), experiment, folder)
    other = yaml.safe_load(workers.about[0]) | {"seed": 5}
    with (
        pytest.raises(
            PipelineError, match=r"^a worker has other code or files than the run \(its batches differ\)"
        ),
        replace(workers, about=(yaml.safe_dump(other), str(folder.path))) as changed,
    ):
        estimate_spectra(folder, experiment, changed)


def test_the_command_deals_products_to_workers(cluster, tmp_path):
    lines = succeed(tmp_path / "run", *RUN, "cluster=address", f"cluster.address={cluster.scheduler_address}")
    assert "products are dealt to the workers in 2 parts of the batches." in lines
    assert any("with the matrix of 3 batches, dealt to the workers of the cluster" in line for line in lines)


def test_the_number_of_workers_where_it_is_known():
    known = [num_product_workers(each) for each in (Threads(3), Local(3), Local(), Slurm(5), Address())]
    assert known == [1, 3, num_cores(), 5, None]


# The last one: it leaves one worker.
def test_a_run_goes_on_with_other_workers_and_with_none_to_the_same_bits(
    trained, cluster, expected, tmp_path, monkeypatch
):
    done, multiply = [], Pool.map

    def cut_at_times(pool, function, arguments):
        done.append(len(arguments))
        if len(done) in (8, 16):
            raise Cut
        return multiply(pool, function, arguments)

    folder, experiment = trained(tmp_path / "run")
    monkeypatch.setattr(Pool, "map", cut_at_times)
    for number in (2, 1):
        cluster.scale(number)
        while len(cluster.scheduler_info["workers"]) != number:
            time.sleep(0.01)
        with pytest.raises(Cut):
            estimated(folder, experiment, cluster)
    same(estimated(folder, experiment, None), expected)
    assert done == [2] * 16
