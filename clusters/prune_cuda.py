"""Delete NVIDIA's files that no process without a GPU loads, from the environment of this interpreter.

The Dockerfile's CPU variant does that: some libraries are linked into torch's own and have to stay.
"""

from pathlib import Path

import torch
import torchvision  # noqa: F401 what it links to stays as well

if __name__ == "__main__":
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/nvidia/" in line}
    for file in (Path(torch.__file__).parents[1] / "nvidia").rglob("*"):
        if file.is_file() and str(file) not in loaded:
            file.unlink()
