"""A whole sweep on somebody's own image folder: each setting that was left open, chosen, and why.

``settings.py`` has the choices themselves, pure functions of numbers; ``folder.py`` looks at the folder, the model and
the machine. What was given is taken as given, and the other choices are made to suit it.
"""

from alast_tune.choices.folder import (
    MODEL,
    Choices,
    Chosen,
    is_named,
    model_settings,
    name_of,
    sweep_of_folder,
    this_machine,
)
from alast_tune.choices.settings import Machine

__all__ = [
    "MODEL",
    "Choices",
    "Chosen",
    "Machine",
    "is_named",
    "model_settings",
    "name_of",
    "sweep_of_folder",
    "this_machine",
]
