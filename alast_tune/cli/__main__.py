"""``python -m alast_tune.cli``."""

from alast_tune.cli import main

if __name__ == "__main__":
    main()
