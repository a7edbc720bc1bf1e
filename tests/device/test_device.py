import pytest
import torch

from pipeline.device import Auto, Cpu, Cuda
from pipeline.errors import PipelineError


@pytest.fixture(autouse=True)
def _settings():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def test_cpu_sets_threads_only_if_asked_for():
    torch.set_num_threads(1)
    assert Cpu().setup() == torch.device("cpu")
    assert torch.get_num_threads() == 1
    Cpu(num_threads=2).setup()
    assert torch.get_num_threads() == 2


def test_a_gpu_that_is_not_there_gets_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(PipelineError, match=r"index 0: torch finds 0 CUDA devices; choose device=cpu\.$"):
        Cuda().setup()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        PipelineError, match=r"index 3: torch finds 1 CUDA device; choose a lower device.index"
    ):
        Cuda(index=3).setup()


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("device", [Auto, Cuda])
def test_tf32_is_what_was_asked_for(monkeypatch, device, tf32):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not tf32
    assert device(tf32=tf32).setup() == torch.device("cuda", 0) == chosen[0]
    assert torch.backends.cuda.matmul.allow_tf32 is tf32
    assert torch.backends.cudnn.allow_tf32 is tf32


def test_auto_takes_the_processor_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Auto().setup() == torch.device("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("tf32", [False, True])
def test_a_product_on_a_gpu_is_exact_unless_tf32_was_asked_for(tf32):
    device = Auto(tf32=tf32).setup()
    torch.manual_seed(0)
    a = torch.rand(256, 256, dtype=torch.float64)
    error = ((a.to(device, torch.float32) @ a.to(device, torch.float32)).cpu() - a @ a).abs().max() / (
        a @ a
    ).max()
    assert (error > 1e-5) is tf32


@pytest.mark.parametrize(
    ("device", "options", "message"),
    [
        (Cpu, {"num_threads": 0}, r"device.num_threads=0: give a whole number of at least 1, or null"),
        (Cuda, {"index": -1}, r"device.index=-1"),
        (Cuda, {"tf32": "yes"}, r"device.tf32='yes': give true or false"),
        (Auto, {"tf32": None}, r"device.tf32=None"),
    ],
)
def test_wrong_options_get_one_line(device, options, message):
    with pytest.raises(PipelineError, match=message):
        device(**options)
