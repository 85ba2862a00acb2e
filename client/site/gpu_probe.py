"""Checks in a separate process whether the GPU can be used.

Querying GPU memory creates a CUDA context that lasts until the process exits. The program that starts a site runs as
long as the site does; on a GPU in exclusive mode its context would keep the runner out.
``python -m client.site.gpu_probe NAME`` prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Literal

from common.errors import ConfigError
from common.formatting import counted

Severity = Literal["ok", "warning", "error"]
LONGEST_SECONDS = 120.0
ADVICE = "fix that, or use --device cpu"


def ask(name: str) -> tuple[Severity, str]:
    """Run ``look`` in another process and return its result.

    Parameters
    ----------
    name
        Either ``auto`` or ``cuda``.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "client.site.gpu_probe", name], capture_output=True, timeout=LONGEST_SECONDS
        )
    except subprocess.TimeoutExpired:
        return "error", f"the GPU did not answer within {LONGEST_SECONDS:g} s; {ADVICE}"
    try:
        severity, text = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return "error", f"the GPU cannot be checked: the probe exited with status {done.returncode}; {ADVICE}"
    return severity, text


def look(name: str) -> tuple[Severity, str]:
    """Return the severity and what was found; call it only if there are signs of a GPU."""
    # Late: whoever starts a site needs no PyTorch.
    import torch

    from common.system.devices import choose_device, why_no_gpu

    try:
        if choose_device(name).type == "cuda":
            free, total = torch.cuda.mem_get_info()
            return "ok", f"{torch.cuda.get_device_name()}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
    except ConfigError as error:
        return "error", str(error)
    except RuntimeError as error:  # from PyTorch or the driver, followed by lines of advice to programmers
        reason = str(error).partition("\n")[0]
        return "error", f"the GPU cannot be used ({reason}); {ADVICE}"
    advice = "install a PyTorch build that supports it (image: VARIANT=cuda) and its driver, or use --device cpu"
    return "warning", f"a GPU is present, but {why_no_gpu()}; {without_gpu()}. {advice}"


def without_gpu() -> str:
    """Return the text for training without a GPU."""
    return f"training runs on {counted(os.cpu_count() or 1, 'processor')}"


if __name__ == "__main__":
    print(json.dumps(look(sys.argv[1])))
