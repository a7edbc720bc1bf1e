from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

import pipeline.spectrum

CONF = Path(pipeline.spectrum.__file__).parents[2] / "conf" / "spectrum"


@pytest.mark.parametrize(("name", "choice"), [("exact", "Exact"), ("topk", "TopK"), ("slq", "SLQ")])
def test_every_key_is_an_option_with_its_default(name, choice):
    text = (CONF / f"{name}.yaml").read_text()
    options = yaml.safe_load(text)
    assert text.startswith("# ")
    assert options.pop("_target_") == f"pipeline.spectrum.{choice}"
    assert options == asdict(getattr(pipeline.spectrum, choice)())
