"""The last stage: figures and a self-contained page, made from the files of a run folder and nothing else."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import report_tables as tables
from pipeline.errors import PipelineError
from pipeline.folder import RunFolder, write_atomically
from pipeline.report_words import matrix_name, number

if TYPE_CHECKING:
    from pipeline.figures import Drawn
    from pipeline.hdf5 import Results

TEMPLATE = "report.html.jinja"


def make_report(folder: RunFolder, config: Mapping[str, Any] | None = None) -> Path:
    """Draw the figures of a run folder and write its report.html; needs no model, no data and no GPU.

    config: the resolved config; None reads the one that the run left in its folder. The page opens from disk
    with no network: figures and style are inside. Each file is written whole or not at all.

    Raises:
        PipelineError: there are no spectra yet, or a file of the folder is damaged.
    """
    from pipeline.evolution import stability_limit
    from pipeline.figures import NUM_FIGURES, draw_figures  # matplotlib: not before it is needed
    from pipeline.hdf5 import read_results
    from pipeline.terminal import progress

    steps = folder.spectrum_steps()
    if not steps:
        raise PipelineError(
            f"{folder.spectra} has no spectra to report on: run the stage aggregate before report."
        )
    results = {step: read_results(folder.spectrum(step)) for step in steps}
    history = tables.read_history(folder.history)
    chosen, *_ = tables.load_config(folder, config)
    limit = stability_limit(chosen, str(results[max(results)].attrs["matrix"]))
    drawing = draw_figures(results, history, limit, folder.figures)
    drawn = list(progress(drawing, "report", total=NUM_FIGURES))
    write_atomically(folder.report, _page(folder, config, results, history, drawn))
    return folder.report


def _page(
    folder: RunFolder,
    config: Mapping[str, Any] | None,
    results: Mapping[int, Results],
    history: Mapping[str, tables.Array],
    drawn: Sequence[Drawn],
) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, embed=_embed, quote=shlex.quote)
    last = max(results)
    chosen, yaml, command = tables.load_config(folder, config)
    attrs = results[last].attrs
    return environment.get_template(TEMPLATE).render(
        name=folder.path.resolve().name,
        path=folder.path,
        step=last,
        attrs=attrs,
        matrix=matrix_name(str(attrs["matrix"])),
        choices=_choices(chosen),
        seed=chosen.get("seed"),
        config=yaml,
        command=command,
        headline=tables.headline(results[last], history),
        batches=tables.batches(results[last]),
        layers=tables.layers(results[last]),
        steps=tables.steps(results) if len(results) > 1 else [],
        now=[each for each in drawn if each.step == last],
        whole_run=[each for each in drawn if each.step is None],
        files=tables.files(folder),
        shard=folder.shard(last, 0),
        spectrum=folder.spectrum(last),
        versions=tables.versions(results[last]),
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


def _choices(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Which class was chosen in each group of the config."""
    return [
        (group, str(options["_target_"]).rsplit(".", 1)[-1])
        for group, options in config.items()
        if isinstance(options, Mapping) and "_target_" in options
    ]


def _embed(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
