"""A hospital that imports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from client.cli import main
from tests.orthanc import HTTP_PORT, LOCAL_PORT, Orthanc

Row = dict[str, Any]


class Site:
    """A folder with an archive's address and a cohort."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "scans"
        self.beside = folder / "scans.import"

    @property
    def files(self) -> list[Path]:
        """All files of the dataset."""
        return sorted(path for path in self.out.rglob("*") if path.is_file())

    def peer(self, orthanc: Orthanc, way: str = "dicom", port: int = 0) -> Row:
        """Keys of ``pacs.yaml``."""
        if way == "web":
            return {"url": f"http://{orthanc.host}:{port or HTTP_PORT}/dicom-web"}
        peer: Row = {"ae_title": orthanc.title, "host": orthanc.host, "port": port or orthanc.port}
        if way == "move":
            peer |= {"retrieve": "move", "store": {"address": "127.0.0.1", "port": LOCAL_PORT}}
        return peer

    def write_address(self, **values: object) -> None:
        self._write("pacs.yaml", {"pause_seconds": 0, **values})

    def write_cohort(self, *accessions: str, **keys: object) -> None:
        """Write ``cohort.yaml``, and a CSV file of accession numbers if there are any."""
        if accessions:
            keys["accession_numbers"] = "cohort.csv"
            lines = ["accession_number", *(f'"{accession}"' for accession in accessions)]
            (self.folder / "cohort.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._write("cohort.yaml", keys)

    def arguments(self, *options: str) -> list[str]:
        files = ["--from", str(self.folder / "pacs.yaml"), "--query", str(self.folder / "cohort.yaml")]
        return ["import", *files, "--out", str(self.out), *options]

    def run(self, *options: str) -> tuple[int, list[Row]]:
        """Import, and return the exit status and the report."""
        status = main(self.arguments(*options))
        report = self.beside / "report.json"
        return status, json.loads(report.read_text(encoding="utf-8"))["studies"] if report.exists() else []

    def _write(self, name: str, content: object) -> None:
        (self.folder / name).write_text(yaml.safe_dump(content), encoding="utf-8")
