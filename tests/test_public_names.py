"""What `import pipeline` offers, and that it takes no library to look at it."""

import subprocess
import sys
from importlib import import_module

import pipeline

LOOK = """
import sys, pipeline
print(*dir(pipeline))
print(*sorted({"torch", "h5py", "matplotlib"} & set(sys.modules)))
"""


def test_dir_shows_the_public_names_and_imports_nothing():
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True)
    names, libraries = done.stdout.splitlines()
    assert set(pipeline.__all__) <= set(names.split())
    assert libraries == ""
    assert not [name for name in names.split() if name.startswith("_") and not name.startswith("__")]


def test_every_public_name_is_there_and_has_a_docstring_with_its_errors():
    assert sorted(pipeline._HOMES) == sorted(pipeline.__all__)
    for name in pipeline.__all__:
        entry = getattr(pipeline, name)
        assert entry is getattr(import_module(pipeline._HOMES[name]), name)
        assert "Raises:" in entry.__doc__ or "errors are those of `hessian`" in " ".join(
            entry.__doc__.split()
        )
