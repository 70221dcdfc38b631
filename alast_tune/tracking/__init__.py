"""Everything MLflow: one parent run a sweep, one child a trial, the front where people look.

``tracker`` puts what happens to a sweep into operations; ``queue`` keeps them in the sweep's folder, and ``kept`` reads
that; ``writer`` carries them out in a thread of its own, so that a store that is slow, full or away holds no sweep up;
``finish`` waits for it; ``store`` finds and opens the store. ``names`` and ``people`` are how runs read, ``members``
what they learn after they have ended, ``page`` the front as MLflow shows it, ``view`` a sweep in MLflow's own lists and
charts; ``registry`` makes a trained model a version of a registered one, ``served`` is what runs where it is served.
"""

from alast_tune.tracking.finish import log_reseeded, sync
from alast_tune.tracking.kept import pending, run_ids, sweep_run_id
from alast_tune.tracking.page import REPORT, describe_front
from alast_tune.tracking.people import same_images
from alast_tune.tracking.registry import (
    ALL_DATA,
    COMPARED_DATA,
    SCORE,
    Registered,
    RegistryError,
    check_names,
    register,
    tag_run,
)
from alast_tune.tracking.store import connect, default_uri, is_file_based
from alast_tune.tracking.tracker import Tracker
from alast_tune.tracking.view import prepare_view

__all__ = [
    "ALL_DATA",
    "COMPARED_DATA",
    "REPORT",
    "SCORE",
    "Registered",
    "RegistryError",
    "Tracker",
    "check_names",
    "connect",
    "default_uri",
    "describe_front",
    "is_file_based",
    "log_reseeded",
    "pending",
    "prepare_view",
    "register",
    "run_ids",
    "same_images",
    "sweep_run_id",
    "sync",
    "tag_run",
]
