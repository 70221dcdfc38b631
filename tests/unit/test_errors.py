"""The error a person reads survives the way from a worker to the driver."""

import pickle

from alast_tune.errors import ConfigError


def test_it_names_field_value_and_remedy_in_one_line_also_after_pickling() -> None:
    error = ConfigError("model.checkpoint", "a.pth", "cannot be read;\n  give another")
    assert str(error) == "model.checkpoint = a.pth: cannot be read; give another"
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.field) == (str(error), "model.checkpoint")
