"""Runs all benchmarks, one process each, and writes ``benchmarks.md``: ``python -m tests.benchmarks``."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tests.conftest import REPOSITORY

PACKAGES = ("torch", "flwr", "numpy", "scipy", "nibabel", "monai")


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def main() -> int:
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))
    sections, failed = [], []
    for name in names:
        print(f"== {name}", flush=True)
        command = [sys.executable, "-m", f"tests.benchmarks.{name}"]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        print(done.stdout, done.stderr, sep="", flush=True)
        if done.returncode:
            failed.append(name)
        sections.append(f"## {name}\n\n```\n{done.stdout.strip() or 'failed: see the log'}\n```\n")
    head = [
        "# Benchmarks",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {processor()}, {len(os.sched_getaffinity(0))} cores, Python "
        f"{platform.python_version()}, " + ", ".join(f"{package} {version(package)}" for package in PACKAGES),
        "",
        "Absolute times depend on the machine; the last line of each block is the figure to watch.",
        "",
    ]
    (REPOSITORY / "benchmarks.md").write_text("\n".join([*head, *sections]), encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
