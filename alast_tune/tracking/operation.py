"""One write to MLflow, and what is known of the run that it is for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Operation:
    """One write to MLflow; carried out twice it leaves what it leaves once.

    Runs go by keys of ours, since MLflow's ids are known only once it has made them.
    """

    run: str
    do: Literal["open", "log", "end", "upload", "model"]
    time: int
    """When it was asked for, in ms since 1970: what MLflow shows, whenever it is carried out."""
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    step: int = 0
    status: Literal["", "FINISHED", "FAILED", "KILLED"] = ""
    source: str = ""
    """What is uploaded, a file or folder in the queue's (unset: the front's pages); or the name of a model."""
    dataset: Mapping[str, str] = field(default_factory=dict)
    """Of a run that is opened: name, digest, source and source_type of what it trains on."""

    def body(self) -> str:
        """Put into JSON, without what is empty."""
        return json.dumps({name: value for name, value in asdict(self).items() if value}, separators=(",", ":"))


@dataclass(frozen=True)
class Run:
    """What is known of a run."""

    run_id: str | None = None
    """MLflow's; None until it has been opened."""
    status: str | None = None
    """How the last operation asked for leaves it: empty for open; None if none opens or ends it."""
    step: int = 0
    """The last step that anything was logged at."""
    place: str | None = None
    """The tags that say how it stands to the front, as JSON; None if it was never on it."""


def read_operation(body: str) -> Operation:
    """Read what :meth:`Operation.body` wrote."""
    return Operation(**json.loads(body))


def after(known: Run, operation: Operation) -> Run:
    """Tell what an operation that is asked for makes of a run."""
    status = operation.status if operation.do in {"open", "end"} else known.status
    return Run(known.run_id, status, max(operation.step, known.step), known.place)
