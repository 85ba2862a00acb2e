"""Import of 200 small studies from Orthanc over DICOM, 12 of them broken in 12 ways.

``python -m tests.benchmarks.pacs_import`` starts Orthanc in a network of its own (as root), stores the studies, and
calls ``fedvox-client import`` twice. Every broken study must be named with its reason, every other be imported, and the
second call must change nothing. ``--web`` uses DICOMweb, ``--studies`` makes it shorter.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY


def call(site: Any) -> tuple[int, float, list[dict[str, Any]]]:
    """Import in a process of its own: exit status, seconds, and the report's studies."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "client.cli", *site.arguments()]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=False)
    seconds = time.perf_counter() - start
    return done.returncode, seconds, json.loads((site.beside / "report.json").read_text(encoding="utf-8"))["studies"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--web", action="store_true")
    options = parser.parse_args()
    from tests.client.pacs.site import Site
    from tests.client.pacs.studies import BROKEN, study, write
    from tests.orthanc import private_network, run_orthanc

    good = [f"A{number}" for number in range(options.studies - len(BROKEN))]
    with tempfile.TemporaryDirectory() as name, private_network(), run_orthanc(Path(name) / "orthanc") as orthanc:
        folder = Path(name)
        os.environ["FEDVOX_LEDGER"] = str(folder / "hospital" / "ledger.jsonl")
        broken = [break_it(study(key, 1000 + seed)) for seed, (key, (break_it, _)) in enumerate(BROKEN.items())]
        orthanc.upload(write(folder / "made", *broken, *(study(key, seed) for seed, key in enumerate(good))))
        site = Site(folder)
        site.write_address(**site.peer(orthanc, "web" if options.web else "dicom"))
        site.write_cohort(*good, *BROKEN)
        status, seconds, results = call(site)
        found = {one["accession"]: one for one in results}
        right = sum(found[key]["outcome"] == "imported" for key in good)
        named = sum(
            found[key]["outcome"] == "refused" and re.search(reason, found[key]["reason"]) is not None
            for key, (_, reason) in BROKEN.items()
        )
        files = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in site.files}
        again, seconds_again, results_again = call(site)
        same = files == {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in site.files}
        new = sum(one["outcome"] == "imported" for one in results_again)
    print(f"first call: {seconds:.0f} s, exit status {status}; second call: {seconds_again:.0f} s, exit status {again}")
    print(f"second call: {new} imported, files {'unchanged' if same else 'CHANGED'}")
    print(f"{right} of {len(good)} right, {named} of {len(BROKEN)} named with the true reason")
    return 0 if (right, named, status, again, same, new) == (len(good), len(BROKEN), 1, 1, True, 0) else 1


if __name__ == "__main__":
    sys.exit(main())
