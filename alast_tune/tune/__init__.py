"""The search: Ray Tune runs trials, Optuna proposes them, the study is the one truth about them."""
