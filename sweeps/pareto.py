"""`alast-tune sweep` as a script, for `ray job submit -- python sweeps/pareto.py`."""

from alast_tune.cli.sweep import main

if __name__ == "__main__":
    main()
