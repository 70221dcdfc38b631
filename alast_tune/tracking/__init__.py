"""Everything MLflow: one parent run a sweep, one child a trial, the front where people look.

``tracker`` puts what happens to a sweep into operations; ``queue`` keeps them in the sweep's folder, and ``kept`` reads
that; ``writer`` carries them out in a thread of its own, so that a store that is slow, full or away holds no sweep up;
``store`` finds and opens the store; ``page`` is the front as MLflow shows it, ``view`` a sweep in MLflow's own
lists and charts; ``registry`` makes a trained model a
version of a registered one, and ``served`` is what that runs where it is served.
"""

from alast_tune.tracking.kept import pending, run_ids
from alast_tune.tracking.page import REPORT, describe_front
from alast_tune.tracking.registry import RegistryError, check_names, register, tag_run
from alast_tune.tracking.store import default_uri, is_file_based, open_store
from alast_tune.tracking.tracker import Tracker, end_status, log_reseeded, sync
from alast_tune.tracking.view import prepare_view

__all__ = [
    "REPORT",
    "RegistryError",
    "Tracker",
    "check_names",
    "default_uri",
    "describe_front",
    "end_status",
    "is_file_based",
    "log_reseeded",
    "open_store",
    "pending",
    "prepare_view",
    "register",
    "run_ids",
    "sync",
    "tag_run",
]
