"""The workers of a Dask scheduler that runs already."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.validation import check_number, check_text

FORM = re.compile(r"(tcp|tls|ucx|ws|wss)://.+:\d+")


@dataclass(frozen=True)
class Address:
    """A scheduler that someone else has started, and its workers; they are left as they were found.

    Workers must see the run folder under the same path, and have this package installed. patience: seconds to wait for
    the scheduler, and for its first worker.
    """

    address: str = "tcp://127.0.0.1:8786"
    patience: float = 10.0

    def __post_init__(self) -> None:
        check_text("cluster.address", self.address, "tcp://127.0.0.1:8786")
        if not FORM.fullmatch(self.address):
            raise PipelineError(
                f"cluster.address={self.address!r}: give protocol, host and port, such as tcp://127.0.0.1:8786."
            )
        check_number("cluster.patience", self.patience, above=0)

    @contextmanager
    def open(self, scratch: Path) -> Iterator[int]:
        from distributed import Client

        try:
            client = Client(self.address, timeout=self.patience)
        except (OSError, ValueError) as error:  # a time-out is an OSError too
            raise PipelineError(
                f"no Dask scheduler answers at {self.address} within {self.patience:g} s: start one with "
                "`dask scheduler --host 127.0.0.1`, or choose cluster=local."
            ) from error
        with client:
            try:
                client.wait_for_workers(1, timeout=self.patience)
            except TimeoutError as error:
                raise PipelineError(
                    f"the Dask scheduler at {self.address} has no workers: start some with "
                    f"`dask worker {self.address} --nthreads 1`."
                ) from error
            yield sum(client.nthreads().values())
