"""Versions, commits and machines."""

import platform
import subprocess
import sys

from pipeline.system import provenance


def test_versions_are_those_of_this_interpreter():
    import torch

    found = provenance.versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["torch"] == torch.__version__


def test_the_commit_is_that_of_the_project_alone(tmp_path, monkeypatch):
    def git(*arguments):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert provenance.git_commit(tmp_path) is None
    git("init")
    assert provenance.git_commit(tmp_path) is None
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as inside a hook
    assert provenance.git_commit(tmp_path) == commit
    (tmp_path / "untracked").touch()
    assert provenance.git_commit(tmp_path) == commit
    (tmp_path / "file").write_text("two")
    assert provenance.git_commit(tmp_path) == f"{commit} (changed)"
    (tmp_path / "site-packages").mkdir()
    assert provenance.git_commit(tmp_path / "site-packages") is None


def test_the_machine_is_named_with_its_processor(tmp_path, monkeypatch):
    told = tmp_path / "cpuinfo"
    told.write_text("processor : 0\nmodel name\t: Fast CPU @ 3 GHz\nflags : a b\nmodel name\t: other\n")
    monkeypatch.setattr(provenance, "CPUINFO", told)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    found = provenance.machine()
    assert found["processor"] == "8 × Fast CPU @ 3 GHz"
    assert found["machine"] == platform.node()
    told.unlink()
    assert provenance.machine()["processor"].startswith("8 × ")
