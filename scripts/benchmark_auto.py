"""What `strategy=auto` estimates of units and rows, beside the seconds that they take, and how wide passes of rows pay.

    python scripts/benchmark_auto.py                          # every net of tests/zoo that is installed
    python scripts/benchmark_auto.py --nets flow,u-net --rounds 5

float32, one thread, seconds of this process, unverified, the least of `--rounds` in turn. Nets of up to 400 weights and
of more than 10,000 are left out: there nothing is estimated.

estimated: work of rows over work of units by `pipeline.strategy.auto`, above 1 for units. measured: seconds of
    `strategy=hvp` over those of `strategy=khatri_rao`, both with passes of as many rows as `auto` takes.
hvp by rows: seconds with 128 rows in a pass, with 512, and with all.
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import torch
from benchmark_zoo import NETS, timed

from pipeline import hessian
from pipeline.errors import PipelineError
from pipeline.layout import Layout
from pipeline.objective.batch import Batch
from pipeline.objective.objective import objective_of
from pipeline.strategy import HVP, Auto, KhatriRao, Strategy
from pipeline.strategy.auto import work_by_rows, work_by_units
from pipeline.strategy.hvp import count_numbers, rows_at_once
from pipeline.strategy.khatri_rao.captured_net import uses_of

WIDTHS = (128, 512, 10_000)


def measure(net: str, rounds: int) -> dict[str, Any] | None:
    """The estimates and the seconds of one net; None where nothing is estimated."""
    model, criterion, inputs, targets, _, parameters = NETS[net].build(NETS[net].num_samples, wide=True)
    objective, params = objective_of(model, criterion, parameters)
    batch, num_weights = Batch.of(inputs, targets), Layout.of(params).num_parameters
    auto = Auto()
    if not auto.few_weights < num_weights <= auto.some_weights:
        return None
    counts, uses = count_numbers(objective, params, batch), uses_of(objective, params, batch, tuple(params))
    rows = rows_at_once(counts, params, auto.megabytes)
    units = KhatriRao(tangents_per_product=rows)
    by_units = work_by_units(units.cost_of(uses, params, batch), uses, counts)
    ways: dict[str, Strategy] = {"units": units, "rows": HVP(rows)}
    ways |= {f"hvp {width}": HVP(min(width, num_weights)) for width in WIDTHS}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, strategy in ways.items():
            options = {"parameters": parameters, "strategy": strategy, "verify": False}
            run = timed(lambda options=options: hessian(model, criterion, inputs, targets, **options))
            seconds[name].append(run[0])
    least = {name: min(values) for name, values in seconds.items()}
    estimated = work_by_rows(num_weights, uses, counts) / by_units if uses else 0.0
    taken = "units" if auto.choose(objective, params, batch).name == "khatri_rao" else "rows"
    return {"P": num_weights, "estimated": estimated, "taken": taken, **least}


def main() -> None:
    parser = argparse.ArgumentParser(description="The estimates of strategy=auto beside seconds.")
    parser.add_argument(
        "--nets", default="", help="ids, or beginnings of them; all that are installed by default"
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of which the least is taken")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    begins = tuple(options.nets.split(","))
    nets = [net for net in NETS if net.startswith(begins) and not (NETS[net].missing or NETS[net].refused)]
    print(f"torch {torch.__version__}, float32, one thread\n")
    print("| net | P | taken | estimated | measured | units, s | rows, s | hvp by rows: 128, 512, all, s |")
    print("|---|---:|---|---:|---:|---:|---:|---|")
    lost = []
    for net in nets:
        try:
            row = measure(net, options.rounds)
        except PipelineError as error:
            print(f"| {net} | | | | | | | {error} |", flush=True)
            continue
        if row is None:
            continue
        units, rows = row["units"], row["rows"]
        lost.append(row[row["taken"]] / min(units, rows))
        widths = ", ".join(f"{row[f'hvp {width}']:.3g}" for width in WIDTHS)
        print(
            f"| {net} | {row['P']:,} | {row['taken']} | {row['estimated']:.2f} | {rows / units:.2f} "
            f"| {units:.3g} | {rows:.3g} | {widths} |",
            flush=True,
        )
    if lost:
        right = sum(value == 1 for value in lost)
        share = f"{right} of {len(lost)} nets"
        print(f"\nThe faster way was taken for {share}; else it took {max(lost):.2f} times as long at most.")


if __name__ == "__main__":
    main()
