import csv

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.criterion import BinaryCrossEntropy, CrossEntropy, SquaredError
from pipeline.data import Blobs, Digits
from pipeline.errors import PipelineError
from pipeline.model import CNN, MLP, ResNet, Transformer
from pipeline.objective.batch import Batch
from pipeline.objective.checkpoints import load_state, save_weights
from pipeline.system.run_folder import RunFolder
from pipeline.training import GD, SGD, Adam, Pretrained, Untrained

N, D = 12, 3
RNG = np.random.default_rng(0)
X, Y, W = RNG.normal(size=(N, D)), RNG.normal(size=(N, 1)), RNG.normal(size=(1, D))


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


def run(training, folder, model, criterion, train, test=None, checkpoint_steps=(), seed=0):
    """The last step and the logged rows."""
    rows = {}
    last = training.run(
        model,
        criterion,
        train,
        test,
        folder,
        checkpoint_steps=checkpoint_steps,
        seed=seed,
        log=rows.__setitem__,
    )
    return last, rows


def linear_regression():
    model = nn.Linear(D, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(W))
    return model, SquaredError(), Batch(torch.tensor(X), torch.tensor(Y))


def gradient(w, decay=0.0):
    return (X @ w.T - Y).T @ X / N + decay * w


def descend(decay, momentum, rate, num_steps):
    w, v = W, 0 * W
    for _ in range(num_steps):
        v = momentum * v + gradient(w, decay)
        w = w - rate * v
    return w


def descend_adam(decay, rate, num_steps):
    w, m, v = W, 0 * W, 0 * W
    for t in range(1, num_steps + 1):
        g = gradient(w, decay)
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        w = w - rate * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-8)
    return w


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        (GD(num_steps=30, learning_rate=0.2), descend(0, 0, 0.2, 30)),
        (GD(num_steps=30, learning_rate=0.2, weight_decay=0.3), descend(0.3, 0, 0.2, 30)),
        (SGD(num_steps=30, learning_rate=0.1, momentum=0.7, batch_size=None), descend(0, 0.7, 0.1, 30)),
        (
            SGD(num_steps=30, learning_rate=0.1, momentum=0, batch_size=99, weight_decay=1),
            descend(1, 0, 0.1, 30),
        ),
        (
            Adam(num_steps=30, learning_rate=0.1, batch_size=None, beta1=0.8, beta2=0.9, weight_decay=0.1),
            descend_adam(0.1, 0.1, 30),
        ),
    ],
    ids=str,
)
def test_on_all_samples_each_optimizer_is_its_formula(folder, training, expected):
    model, criterion, train = linear_regression()
    run(training, folder, model, criterion, train)
    np.testing.assert_allclose(model.weight.detach().numpy(), expected, rtol=1e-10)


def test_a_minibatch_step_uses_the_samples_of_its_epochs_permutation(folder):
    model, criterion, train = linear_regression()
    run(
        SGD(num_steps=4, batch_size=5, learning_rate=0.1, momentum=0), folder, model, criterion, train, seed=3
    )
    orders = [np.random.default_rng([3, epoch]).permutation(N) for epoch in (0, 1)]
    w = W
    for part in (orders[0][:5], orders[0][5:10], orders[0][10:], orders[1][:5]):
        w = w - 0.1 * (X[part] @ w.T - Y[part]).T @ X[part] / len(part)
    np.testing.assert_allclose(model.weight.detach().numpy(), w, rtol=1e-12)


def test_checkpoints_history_and_log(folder):
    model, criterion, train = linear_regression()
    training = GD(num_steps=25, learning_rate=0.2, evaluate_every=10)
    last, rows = run(training, folder, model, criterion, train, train.chunk(0, 5), checkpoint_steps=[0, 7])
    assert last == 25
    assert folder.checkpoint_steps() == [0, 7, 25]
    np.testing.assert_array_equal(load_state(folder.checkpoint(0))["weight"], W)
    np.testing.assert_allclose(load_state(folder.checkpoint(7))["weight"], descend(0, 0, 0.2, 7), rtol=1e-12)
    assert torch.equal(load_state(folder.checkpoint(25))["weight"], model.weight)
    with folder.history.open() as file:
        history = list(csv.DictReader(file))
    assert list(history[0]) == ["step", "train_loss", "train_accuracy", "test_loss", "test_accuracy"]
    for row, step in zip(history, (0, 10, 20, 25), strict=True):
        residual = X @ descend(0, 0, 0.2, step).T - Y
        assert int(row["step"]) == step
        assert float(row["train_loss"]) == pytest.approx(0.5 * (residual**2).mean(), rel=1e-10)
        assert float(row["test_loss"]) == pytest.approx(0.5 * (residual[:5] ** 2).mean(), rel=1e-10)
        assert row["train_accuracy"] == row["test_accuracy"] == ""
        assert rows[step] == {key: float(row[key]) for key in ("train_loss", "test_loss")}
    assert not model.training
    assert model.weight.grad is None


@pytest.mark.parametrize("seed", range(3))
def test_the_default_reaches_95_percent_on_digits(folder, seed):
    samples = Digits().load()
    torch.manual_seed(seed)
    model = MLP(samples.input_shape, samples.num_outputs)
    _, rows = run(Adam(), folder, model, CrossEntropy(), *(samples.train, samples.test), seed=seed)
    assert rows[1000]["test_accuracy"] > 0.95
    assert rows[1000]["train_accuracy"] > 0.99


@pytest.mark.parametrize("model", [MLP, CNN, ResNet, Transformer])
def test_every_model_learns(folder, model):
    samples = Digits(num_samples=200).load()
    torch.manual_seed(0)
    training = Adam(num_steps=60, learning_rate=0.02, batch_size=50)
    _, rows = run(training, folder, model((1, 8, 8), 10), CrossEntropy(), samples.train)
    assert rows[60]["train_loss"] < 0.7 * rows[0]["train_loss"]


@pytest.mark.parametrize("criterion", [CrossEntropy(), SquaredError("sum"), BinaryCrossEntropy()])
def test_every_criterion_has_an_accuracy_for_labels(folder, criterion):
    num_outputs = 1 if isinstance(criterion, BinaryCrossEntropy) else 2
    samples = Blobs(num_clusters=2, num_samples=100, dimension=4, num_outputs=num_outputs).load()
    torch.manual_seed(0)
    training = Adam(num_steps=60, learning_rate=0.05)
    _, rows = run(training, folder, MLP((4,), num_outputs), criterion, samples.train, samples.test)
    assert rows[60]["train_accuracy"] == 1
    assert rows[60]["test_accuracy"] > 0.9


def test_a_diverging_training_says_the_step_and_keeps_checkpoints(folder):
    model, criterion, train = linear_regression()
    training = GD(num_steps=2000, learning_rate=1e4)
    with pytest.raises(
        PipelineError, match=r"at step \d+ the loss is (inf|nan): lower training.learning_rate"
    ):
        run(training, folder, model, criterion, train, checkpoint_steps=[2])
    assert folder.checkpoint_steps() == [2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"checkpoint_steps": [0, 11]},
            r"checkpoint_steps=\[0, 11\]: this training ends at step 10: leave out step 11",
        ),
        ({"checkpoint_steps": [-1]}, r"checkpoint_steps=\[-1\]: give a list of whole numbers of at least 0"),
        ({"checkpoint_steps": 5}, r"checkpoint_steps=5: give a list"),
        ({"seed": -1}, r"seed=-1: give a whole number"),
        (
            {"model": nn.Linear(4, 1)},
            r"Linear does not fit the data: on shape \(2, 3\) it says .*: check model.input",
        ),
        ({"model": nn.Identity()}, r"Identity has no weights that require grad: choose training=none\."),
        (
            {"criterion": nn.NLLLoss()},
            r"the criterion does not fit Linear and the data: on outputs shape \(2, 1\)",
        ),
        (
            {"criterion": CrossEntropy()},
            r"criterion=cross_entropy: outputs have shape \(2, 1\).* choose criterion=squared",
        ),
        (
            {"criterion": nn.MSELoss(reduction="none")},
            r"the criterion gives shape \(2, 1\): one number is needed",
        ),
    ],
)
def test_what_does_not_fit_gets_one_line_before_anything_is_written(folder, given, message):
    model, criterion, train = linear_regression()
    given = {"model": model.float(), "criterion": criterion, **given}
    with pytest.raises(PipelineError, match=message) as error:
        run(GD(num_steps=10), folder, train=train.to(dtype=torch.float32), **given)
    assert "\n" not in str(error.value)
    assert not folder.checkpoints.exists()


@pytest.mark.parametrize(
    ("training", "options", "message"),
    [
        (Adam, {"num_steps": "many"}, r"training.num_steps='many': give a whole number of at least 1\.$"),
        (Adam, {"batch_size": 0}, r"training.batch_size=0: .* or null \(all samples\)"),
        (Adam, {"learning_rate": 0}, r"training.learning_rate=0: give a number above 0\.$"),
        (Adam, {"beta2": 1.0}, r"training.beta2=1.0: give a number of at least 0 and below 1"),
        (SGD, {"momentum": -0.1}, r"training.momentum=-0.1"),
        (SGD, {"weight_decay": None}, r"training.weight_decay=None"),
        (GD, {"save_every": 0}, r"training.save_every=0"),
        (GD, {"evaluate_every": 2.5}, r"training.evaluate_every=2.5"),
        (Pretrained, {"path": None}, r"training.path=None: give a text"),
    ],
)
def test_wrong_options_get_one_line(training, options, message):
    with pytest.raises(PipelineError, match=message):
        training(**options)


@pytest.mark.parametrize("pretrained", [False, True])
def test_without_training_there_is_step_0_alone(folder, tmp_path, pretrained):
    model, criterion, train = linear_regression()
    save_weights(tmp_path / "given.safetensors", model)
    training = Untrained()
    if pretrained:
        training = Pretrained(str(tmp_path / "given.safetensors"))
        nn.init.zeros_(model.weight)
    last, rows = run(training, folder, model, criterion, train, checkpoint_steps=[0])
    assert (last, list(rows), folder.checkpoint_steps()) == (0, [0], [0])
    assert rows[0] == {"train_loss": pytest.approx(0.5 * ((X @ W.T - Y) ** 2).mean(), rel=1e-12)}
    np.testing.assert_array_equal(model.weight.detach(), W)
    (tmp_path / "given.safetensors").unlink()
    nn.init.zeros_(model.weight)
    assert run(training, folder, model, criterion, train) == (0, {})
    np.testing.assert_array_equal(model.weight.detach(), W)
    with pytest.raises(PipelineError, match=r"checkpoint_steps=\[5\]: this training ends at step 0"):
        run(training, folder, model, criterion, train, checkpoint_steps=[5])


def test_pretrained_weights_that_do_not_fit_or_are_missing_get_one_line(folder, tmp_path):
    model, criterion, train = linear_regression()
    save_weights(tmp_path / "given.safetensors", nn.Linear(D, 2))
    with pytest.raises(
        PipelineError, match=r"does not fit Linear: .*weight has shape \(2, 3\), not \(1, 3\)"
    ):
        run(Pretrained(str(tmp_path / "given.safetensors")), folder, model, criterion, train)
    with pytest.raises(PipelineError, match=r"nowhere.pt: no such file of weights"):
        run(Pretrained("nowhere.pt"), folder, model, criterion, train)
    assert not folder.checkpoints.exists()
