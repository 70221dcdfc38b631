"""Time forecasts: the first of a model, those of configurations that were never seen, and those seen before.

    python benchmarks/forecast.py --models deit_small_patch16_224 vit_base_patch16_224

Weights are random; nothing is downloaded. Milliseconds, medians over configurations drawn from a space like the demo's.
"""

import argparse
import statistics
import time

import numpy as np

from alast_tune.config import TrialConfig
from alast_tune.micro_batches import GROWTH
from alast_tune.tune.forecast import Forecast


def configurations(model: str, count: int, seed: int) -> list[TrialConfig]:
    """Draw ALaST's settings: rate, K, floors, mean budget."""
    draw = np.random.default_rng(seed)
    return [
        TrialConfig.model_validate(
            {
                "model": {"name": model, "pretrained": False},
                "data": {"train_images": 256},
                "method": {
                    "name": "alast",
                    "reading": "fast",
                    "alpha": float(10 ** draw.uniform(-4, -1)),
                    "trainable_blocks": int(draw.integers(1, 13)),
                    "target_budget": float(draw.uniform(0.2, 1.0)),
                    "floors": {part: float(draw.uniform(0.1, 0.6)) for part in ("early", "middle", "late")},
                },
                "train": {"batch_size": 64, "epochs": 10, "device": "cpu"},
            }
        )
        for _ in range(count)
    ]


def milliseconds(forecast: Forecast, config: TrialConfig) -> float:
    """Forecast a trial as a launch does: as it begins, and with grown budgets."""
    start = time.perf_counter()
    forecast.costs(config)
    forecast.costs(config, GROWTH)
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    """Print a line a model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["deit_small_patch16_224", "vit_base_patch16_224"])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for model in options.models:
        forecast, trials = Forecast(), configurations(model, options.count, options.seed)
        first = milliseconds(forecast, trials[0])
        new = [milliseconds(forecast, trial) for trial in trials[1:]]
        again = [milliseconds(forecast, trial) for trial in trials[1:]]
        print(
            f"{model}: first {first:.0f} ms, a new configuration {statistics.median(new):.1f} ms "
            f"(the slowest {max(new):.0f}), one seen before {statistics.median(again):.1f} ms"
        )


if __name__ == "__main__":
    main()
