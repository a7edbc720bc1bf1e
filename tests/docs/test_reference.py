"""The reference has every public name, config key, metric and array; the generators read them in another way."""

import ast
import html
import re
from dataclasses import fields

import pytest
import yaml
from generators import MARK, filled
from generators.python_reference import classes, python_reference
from support.command import PROJECT

import pipeline
from pipeline.config.help import groups
from pipeline.results import QUANTITIES

DOCS, CONF = PROJECT / "docs", PROJECT / "conf"


def page(name):
    return filled((DOCS / "reference" / f"{name}.md").read_text())


def rows(text):
    """The first cell of every row of every table, without the marks of code."""
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)


def keys_of(path, prefix):
    """The keys of a config file that a user may give."""
    found = yaml.safe_load(path.read_text()) or {}
    hidden = {"defaults", "hydra"} | ({"_target_"} if found.get("_target_") != "???" else set())
    return [f"{prefix}{key}" for key in found if key not in hidden]


GROUPS = {  # every folder of conf/ that holds options
    path.relative_to(CONF).as_posix()
    for path in CONF.rglob("*")
    if path.is_dir() and any(path.glob("*.yaml"))
} - {"hydra/job_logging"}  # how the terminal looks is Hydra's own


def test_every_config_key_is_in_the_reference_with_its_comment():
    text = page("configuration")
    listed = rows(text)
    assert [key for key in keys_of(CONF / "config.yaml", "") if key not in listed] == []
    for group in GROUPS - {"experiment"}:
        for path in (CONF / group).glob("*.yaml"):
            section = text.partition(f"### `{group}={path.stem}`")[2].partition("\n### ")[0]
            assert section, path
            there = rows(section)
            assert [key for key in keys_of(path, f"{group.replace('/', '.')}.") if key not in there] == [], (
                path
            )
            comments = re.findall(r"^\w+:.*?  # (.*)$", path.read_text(), re.MULTILINE)
            shown = section.replace("\\|", "|")
            assert [each for each in comments if each not in shown and "Hydra takes" not in each] == [], path


def test_every_group_and_every_experiment_is_in_the_reference():
    text = page("configuration")
    assert [group for group in GROUPS if f"## `{group}`: " not in text] == []
    assert {group for group in GROUPS if "/" not in group} == set(groups())
    experiments = [path.stem for path in (CONF / "experiment").glob("*.yaml")]
    assert [name for name in experiments if f"`experiment={name}`" not in text] == []


def test_every_metric_is_in_the_reference_with_its_sentence():
    text = page("metrics")
    assert [key for key in QUANTITIES if key not in rows(text)] == []
    source = ast.parse((PROJECT / "pipeline" / "results" / "quantities.py").read_text())
    calls = [node for node in ast.walk(source) if isinstance(node, ast.Call) and len(node.args) == 8]
    sentences = {node.args[0].value: node.args[-1].value for node in calls}
    assert sentences.keys() == QUANTITIES.keys()
    assert [key for key, sentence in sentences.items() if sentence.replace("|", "\\|") not in text] == []


def test_every_public_name_is_in_the_reference_with_its_arguments():
    text = page("python")
    for name in pipeline.__all__:
        section = text.partition(f"### `{name}`\n")[2].partition("\n### ")[0]
        assert f"pipeline.{name}(" in section, name
        code = getattr(pipeline, name).__code__
        arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        assert [each for each in arguments if not re.search(rf"\b{each}\b", section)] == [], name
        assert "**Raises**" in section or "errors are those of `hessian`" in section, name


def test_classes_that_functions_return_are_in_the_reference_with_their_fields():
    text = page("python")
    found = {kind.__name__ for kind in classes()}
    assert {
        "CurvatureOperator",
        "Eigenpairs",
        "SpectralDistribution",
        "Traces",
        "Shard",
        "Run",
        "Sweep",
    } <= found
    for kind in classes():
        section = text.partition(f"### `{kind.__name__}`\n")[2].partition("\n### ")[0]
        shown = [field.name for field in fields(kind) if not field.name.startswith("_")]
        assert [name for name in shown if not re.search(rf"\b{name}\b", section)] == [], kind


def test_no_text_of_a_docstring_is_lost():
    shown = re.findall(r"\w+", python_reference().replace("\\", ""))
    for name in pipeline.__all__:
        for word in re.findall(r"\w+", getattr(pipeline, name).__doc__):
            assert word in shown, (name, word)


@pytest.mark.parametrize(
    "path", sorted(DOCS.rglob("*.md")), ids=lambda path: path.relative_to(DOCS).as_posix()
)
def test_every_mark_of_a_page_is_filled(path):
    text = path.read_text()
    assert len(MARK.findall(text)) == text.count("<!-- generated:")
    assert "<!-- generated:" not in filled(text)
    assert html.escape("<!--") not in filled(text)
