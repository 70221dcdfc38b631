"""The paper's tables and figures, rerun: presets into grid sweeps, their trials into Markdown, CSV and pictures.

``plan`` reads presets and runs their sweeps, ``tables`` averages and lays out, ``paper`` has what the paper printed,
``compare`` and ``ablate`` put the two reports together, ``command`` is what a person types.
"""

from alast_tune.reports.ablate import ablate
from alast_tune.reports.command import arguments
from alast_tune.reports.compare import compare
from alast_tune.reports.plan import Ablations, Comparison

__all__ = ["Ablations", "Comparison", "ablate", "arguments", "compare"]
