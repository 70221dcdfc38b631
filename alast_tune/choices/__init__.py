"""A whole sweep on somebody's own image folder: each setting that was left open, chosen, and why.

``settings.py`` has the choices themselves, pure functions of numbers; ``space.py`` says what is searched; ``folder.py``
looks at the folder, the model and the machine. What was given is taken as given, and the other choices are made to
suit it.
"""

from alast_tune.choices.folder import (
    MODEL,
    Choices,
    Chosen,
    data_settings,
    is_named,
    model_settings,
    name_of,
    sweep_of_folder,
    this_machine,
)
from alast_tune.choices.settings import Machine
from alast_tune.choices.space import auto_space, check_methods, space_words, with_auto_space, with_space_of

__all__ = [
    "MODEL",
    "Choices",
    "Chosen",
    "Machine",
    "auto_space",
    "check_methods",
    "data_settings",
    "is_named",
    "model_settings",
    "name_of",
    "space_words",
    "sweep_of_folder",
    "this_machine",
    "with_auto_space",
    "with_space_of",
]
