"""A figure of cost against the number of weights and of samples, from what `benchmark.py --json` measured.

python scripts/benchmark_figure.py outputs/cost.json docs/cost.png
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from pipeline.report.figure_style import BLUE, GREEN, GREY, INK, SKY, VERMILLION, new_figure, save_png, style

LINES = {  # method: (label, color, marker)
    "khatri_rao": ("khatri_rao", BLUE, "o"),
    "hvp": ("hvp", SKY, "s"),
    "torch.func.hessian": ("torch.func.hessian", VERMILLION, "^"),
    "chunked jvp(grad)": ("forward over reverse, in chunks", GREEN, "v"),
    "curvlinops": ("curvlinops: HessianLinearOperator @ I", GREY, "D"),
}


def points(nets: list[dict[str, Any]], method: str, key: str) -> tuple[list[float], list[float]]:
    """Sizes and median seconds of those nets on which the method came to an end."""
    measured = [net for net in nets if net["methods"].get(method, {}).get("times")]
    measured.sort(key=lambda net: float(net[key]))
    seconds = [statistics.median(net["methods"][method]["times"]) for net in measured]
    return [net[key] for net in measured], seconds


def draw(nets: list[dict[str, Any]], path: Path) -> None:
    """Two panels: all nets with the most frequent N against P, and with the most frequent P against N."""
    N, P = (statistics.mode(net[key] for net in nets) for key in ("N", "P"))
    panels = [("P", "weights P", f"N = {N}", [net for net in nets if net["N"] == N])]
    panels.append(("N", "samples N", f"P = {P:,}", [net for net in nets if net["P"] == P]))
    with style():
        figure = new_figure("the dense Hessian of a 64-width-10 tanh net, float32: seconds, and the limit")
        axes = figure.subplots(1, 2, sharey=True)
        for ax, (key, label, title, chosen) in zip(axes, panels, strict=True):
            for method, (name, color, marker) in LINES.items():
                ax.plot(*points(chosen, method, key), color=color, marker=marker, markersize=5, label=name)
            chosen.sort(key=lambda net: float(net[key]))
            limit = [net["P"] ** 2 * (net["N"] / net["gemm"] + 1 / net["write"]) for net in chosen]
            ax.plot(
                [net[key] for net in chosen],
                limit,
                color=INK,
                linestyle=":",
                label="limit: N·P² FLOP, and P² numbers written",
            )
            ax.set(xscale="log", yscale="log", xlabel=label, title=title)
            sizes = sorted({net[key] for net in chosen})
            ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
            ax.set_xticks([], minor=True)
        axes[0].set_ylabel("seconds")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        save_png(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost against P and against N.")
    parser.add_argument("measured", type=Path)
    parser.add_argument("figure", type=Path)
    options = parser.parse_args()
    measured = json.loads(options.measured.read_text())
    draw([net for name, net in measured.items() if "@" in name], options.figure)  # of one family


if __name__ == "__main__":
    main()
