"""Dataset folders and the cases in them.

Layouts:

* ``decathlon``, Medical Segmentation Decathlon: ``dataset.json``, ``imagesTr/CASE.nii.gz``, ``labelsTr/CASE.nii.gz``;
  several channels in one 4D file.
* ``nnunet``, nnU-Net raw: ``imagesTr/CASE_0000.nii.gz``, ``CASE_0001.nii.gz``, ..., ``labelsTr/CASE.nii.gz``.
* ``plain``: ``images/`` and ``labels/`` with the same case names.
* ``files``: a folder of NIfTI files (or a single file), without labels.
* ``dicom_nifti``: ``images/`` (or ``imagesTr/``) with a folder of DICOM for each case, and ``labels/CASE.nii.gz`` (or
  ``labelsTr/``) for each series that is to be used.
* ``dicom_labels``: the same with DICOM segmentations or structure sets in ``labels/`` or among the series; or a folder
  with series and these anywhere inside.
* ``bids``: ``sub-*/[ses-*/]anat/`` with images, ``derivatives/`` with label maps (``common.imaging.datasets.bids``).
* ``bids_images``: the same without label maps.
* ``dicom``: a folder with DICOM files anywhere inside (or a single file), and no NIfTI files; without labels.

All layouts with labels may contain ``patients.csv`` (``common.imaging.datasets.patients_csv``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from common.errors import DataError
from common.formatting import counted
from common.imaging.datasets.bids.rules import USUAL_BIDS, BidsRules
from common.imaging.datasets.bids.scans import BidsScans, choose_channels, find_bids, is_bids
from common.imaging.datasets.case import Case, Problem, Reading
from common.imaging.datasets.dataset_json import Declaration, read_declaration
from common.imaging.datasets.dicom_cases import DicomCases, find_dicom_cases, hidden_dicom, with_label_maps
from common.imaging.datasets.dicom_labels import with_own_structures
from common.imaging.datasets.hints import folder_hint, is_half, missing_folder, readable, unusable_file, why_ignored
from common.imaging.datasets.name_rule import patients_by_name
from common.imaging.datasets.patients_csv import with_patients, with_table
from common.imaging.datasets.training_list import CHANNEL_FILE, case_name, listed_cases, other_endings
from common.imaging.io.dicom.rules import USUAL_RULES, DicomRules
from common.imaging.io.nifti import channel_count, nifti_stem

if TYPE_CHECKING:
    from common.imaging.io.dicom.labels.matching import Match
    from common.imaging.io.dicom.labels.objects import Structure
    from common.imaging.io.dicom.slices import Series

Layout = Literal["decathlon", "nnunet", "plain", "files", "dicom_nifti", "dicom_labels", "dicom", "bids", "bids_images"]

_LOOKED_FOR = (
    "looked for imagesTr/ and labelsTr/ (Decathlon, nnU-Net), images/ and labels/ (plain), sub-*/anat/ (BIDS), "
    "or NIfTI files (.nii, .nii.gz) directly inside, or DICOM files anywhere inside"
)


@dataclass(frozen=True)
class Dataset:
    """Cases found in a folder.

    Attributes
    ----------
    root
        The folder, or the single file.
    layout
        Layout of the folder.
    cases
        Cases sorted by name.
    channels
        Names of the channels: those declared, or ``channel_0``, ...
    labels
        Declared foreground value -> name; empty if the folder declares none.
    series
        All DICOM series of the folder, those that are no cases included.
    label_files
        All DICOM files with labels, and the series that they are about.
    structures
        What the segments of these are, numbered as in ``labels``.
    scans
        All scans of a BIDS folder, until the channels are chosen.
    """

    root: Path
    layout: Layout
    cases: tuple[Case, ...]
    channels: tuple[str, ...]
    labels: dict[int, str]
    series: tuple[Series, ...] = ()
    label_files: tuple[Match, ...] = ()
    structures: tuple[Structure, ...] = ()
    scans: BidsScans | None = None

    @property
    def has_labels(self) -> bool:
        """Whether its layout has label maps."""
        return self.layout not in ("files", "dicom", "bids_images")

    def read_as(self, reading: Reading) -> Dataset:
        """Return the dataset with cases that are read in another way.

        Raises
        ------
        DataError
            The rule for patients, which is used without ``patients.csv``, does not fit the name of a case.
        """
        cases = [replace(case, reading=reading) for case in self.cases]
        if reading.patient_rule is not None and all(case.patient is None or case.patient_id for case in cases):
            names = [case.name for case in cases]
            cases = with_patients(cases, patients_by_name(names, reading.patient_rule, self.root))
        return replace(self, cases=tuple(cases))

    def with_channels(self, wanted: Sequence[str] | None, given: Mapping[str, str]) -> tuple[Dataset, list[Problem]]:
        """Return the dataset with the images that are the channels wanted, where these can be chosen.

        Parameters
        ----------
        wanted, given
            As for ``choose_channels``.
        """
        if self.scans is None:
            return self, []
        channels, cases, problems = choose_channels(self.scans, wanted, given, self.root)
        rest = self.scans if wanted is None else None
        return replace(self, channels=channels, cases=cases, scans=rest), problems

    def declared_as(self, channels: tuple[str, ...], labels: dict[int, str]) -> Dataset:
        """Return the dataset with other channels and labels."""
        return replace(self, channels=channels, labels=labels)


def find_dataset(
    root: Path, rules: DicomRules = USUAL_RULES, *, bids: BidsRules = USUAL_BIDS, labelled: bool = True
) -> Dataset:
    """Find the cases of a dataset folder; no voxels are read.

    Parameters
    ----------
    root, rules, bids, labelled
        As for :func:`scan_dataset`.

    Raises
    ------
    DataError
        If the folder is missing, empty or has no known layout, if an image or label has no counterpart, if a case
        appears twice, or if ``dataset.json`` or ``patients.csv`` is invalid.
    """
    dataset, problems = scan_dataset(root, rules, bids=bids, labelled=labelled)
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more; fedvox-client check lists them all)" if len(errors) > 1 else ""
        raise DataError(errors[0].path, errors[0].text + more)
    return dataset


def scan_dataset(
    root: Path, rules: DicomRules = USUAL_RULES, *, bids: BidsRules = USUAL_BIDS, labelled: bool = True
) -> tuple[Dataset, list[Problem]]:
    """Find the complete cases of a dataset folder and all problems; :func:`find_dataset` stops at errors instead.

    Parameters
    ----------
    root
        The folder, or a single file.
    rules
        How DICOM is read.
    bids
        Which label maps of BIDS are read.
    labelled
        Whether labels in DICOM or BIDS are wanted; they are left out otherwise, and scans without them are cases too.

    Raises
    ------
    DataError
        If no case can be found: the folder is missing, empty or has no known layout.
    """
    root = Path(root)
    if (found := _by_content(root, rules, bids, labelled)) is not None:
        return found
    problems: list[Problem] = []
    declaration = _declaration_of(root, problems)
    layout: Layout = "files"
    dicom: DicomCases | None = None
    ending = next((ending for ending in ("Tr", "") if (root / f"images{ending}").is_dir()), None)
    if ending is not None:
        folders = (root / f"images{ending}", root / f"labels{ending}")
        if not _holds_nifti(folders[0]):
            dicom = find_dicom_cases(folders[0], rules, folders[1], labelled=labelled)
        if dicom is None:
            layout, cases = _paired_cases(folders, declaration, problems)
        else:
            layout, cases = _series(folders[1], dicom, problems, labelled)
    else:
        images = _nifti_files(root, problems, report_others=False)
        problems += hidden_dicom(root)
        cases = [Case(name, files, None) for name, files in _case_images(images, (), declaration, problems).items()]
    listed = len(cases) if declaration.training is None else len(declaration.training)
    if layout != "files" and declaration.cases not in (None, listed):
        text = f"numTraining is {declaration.cases}, and there are {counted(listed, 'case')}"
        problems.append(Problem(None, root / "dataset.json", text, "warning"))
    if layout != "files":
        problems += other_endings(root, declaration, cases)
    if not cases and not any(problem.severity == "error" for problem in problems):
        raise DataError(root, f"holds no cases: {_LOOKED_FOR}.{folder_hint(root, declaration)}")
    if layout != "files":
        cases = with_table(root, cases, problems, frozenset() if dicom is None else dicom.names)
    dataset = _dataset_of(root, layout, cases, declaration)
    return (dataset if dicom is None else _of_dicom(dataset, dicom)), problems


def _declaration_of(root: Path, problems: list[Problem]) -> Declaration:
    try:
        declaration = read_declaration(root / "dataset.json")
    except DataError as error:
        problems.append(Problem(None, error.path, error.problem))
        return Declaration()
    problems += [Problem(None, root / "dataset.json", text, "warning") for text in declaration.doubts]
    return declaration


def _of_bids(root: Path, rules: BidsRules, labelled: bool) -> tuple[Dataset, list[Problem]]:
    scans, problems = find_bids(root, rules, labelled)
    layout: Layout = "bids" if scans.has_labels else "bids_images"
    dataset, more = Dataset(root, layout, scans.cases, (), scans.labels, scans=scans).with_channels(None, {})
    if not dataset.cases and not any(problem.severity == "error" for problem in problems):
        raise DataError(root, "holds subjects, as BIDS has them, and no scan of any that is named as BIDS wants")
    return dataset, problems + more


def _of_dicom(dataset: Dataset, found: DicomCases) -> Dataset:
    cases, structures = with_own_structures(dataset.cases)
    labels = {one.value: one.name for one in structures} or dataset.labels
    return replace(
        dataset, cases=cases, labels=labels, series=found.series, label_files=found.labels, structures=structures
    )


def _by_content(root: Path, rules: DicomRules, bids: BidsRules, labelled: bool) -> tuple[Dataset, list[Problem]] | None:
    """Return a single file, or a folder of BIDS or DICOM, as a dataset; None for other folders."""
    if root.is_file() and nifti_stem(root):
        return _dataset_of(root, "files", [Case(str(nifti_stem(root)), (root,), None)], Declaration()), []
    has_nifti = _holds_nifti(root)
    if not has_nifti and is_bids(root):
        return _of_bids(root, bids, labelled)
    if not has_nifti and (found := find_dicom_cases(root, rules, labelled=labelled)) is not None:
        layout: Layout = "dicom_labels" if found.labels else "dicom"
        cases = found.cases
        if found.labels:
            cases = with_table(root, with_label_maps(found, {}, None), found.problems, found.names)
        return _of_dicom(_dataset_of(root, layout, cases, Declaration()), found), found.problems
    if not root.is_dir():
        what = "is not a dataset folder, a NIfTI file or a DICOM file"
        raise DataError(root, what if root.exists() else "does not exist")
    return None


def _holds_nifti(root: Path) -> bool:
    """Return whether a folder holds NIfTI files, or folders in which they belong."""
    if not root.is_dir():
        return False
    belong = any((root / name).is_dir() for name in ("imagesTr", "images", "imagesTs"))
    return belong or any(nifti_stem(path) or is_half(path) for path in root.iterdir())


def _series(folder: Path, found: DicomCases, problems: list[Problem], labelled: bool) -> tuple[Layout, list[Case]]:
    if not labelled:
        problems += found.problems
        return "dicom", found.cases
    labels: dict[str, Path] = {}
    if folder.is_dir():
        own = {
            folder / match.path.relative_to(folder).parts[0] for match in found.labels if folder in match.path.parents
        }
        labels = _nifti_files(folder, problems, known=own)
    elif not found.labels:
        problems.append(Problem(None, folder, missing_folder(folder)))
    cases = with_label_maps(found, labels, folder)
    problems += found.problems
    return ("dicom_labels" if found.labels else "dicom_nifti"), cases


def _paired_cases(
    folders: tuple[Path, Path], declaration: Declaration, problems: list[Problem]
) -> tuple[Layout, list[Case]]:
    image_folder, label_folder = folders
    images = _nifti_files(image_folder, problems)
    labels: dict[str, Path] = {}
    if label_folder.is_dir():
        labels = _nifti_files(label_folder, problems)
    else:
        problems.append(Problem(None, label_folder, missing_folder(label_folder)))
    grouped = _case_images(images, labels, declaration, problems)
    if declaration.training is not None:
        grouped = listed_cases(grouped, (image_folder, label_folder), declaration.training, problems)
    cases = []
    for name, files in grouped.items():
        if name in labels:
            cases.append(Case(name, files, labels[name]))
        elif label_folder.is_dir():
            problems.append(Problem(name, files[0], f"has no label map: {label_folder.name}/{name}.nii.gz is missing"))
    known = {case_name(stem) for stem in images} | set(images)
    for name, path in labels.items():
        if name not in known:
            problems.append(Problem(name, path, f"has no image in {image_folder.name}/"))
    if image_folder.name == "images":
        return "plain", cases
    is_nnunet = declaration.numbered_channels or not set(grouped) <= set(images)
    return ("nnunet" if is_nnunet else "decathlon"), cases


def _nifti_files(
    folder: Path, problems: list[Problem], report_others: bool = True, known: Collection[Path] = ()
) -> dict[str, Path]:
    """Return the NIfTI files of a folder by name without suffix; hidden files and subfolders are ignored."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        stem = nifti_stem(path)
        if stem is None or path.is_dir():
            if (report_others or is_half(path)) and not path.name.startswith(".") and path not in known:
                problems.append(Problem(None, path, why_ignored(path), "warning" if report_others else "error"))
        elif text := unusable_file(path):
            problems.append(Problem(readable(stem), Path(readable(str(path))), text))
        elif stem in files:
            problems.append(Problem(stem, path, f"is a second file of this case beside {files[stem].name}: remove one"))
        else:
            files[stem] = path
    return files


def _case_images(
    images: dict[str, Path], labels: Collection[str], declaration: Declaration, problems: list[Problem]
) -> dict[str, tuple[Path, ...]]:
    """Group image files by case; ``_0000``, ``_0001``, ... are channels if all files are named that way.

    The digits are part of the case name if no file ends in ``_0000`` or a label map has the full name.
    """
    numbered = all(CHANNEL_FILE.fullmatch(stem) for stem in images)
    by_name = numbered and any(stem.endswith("_0000") for stem in images) and not any(stem in labels for stem in images)
    if not (declaration.numbered_channels or by_name):
        return {stem: (path,) for stem, path in images.items()}
    groups: dict[str, dict[int, Path]] = {}
    for stem, path in images.items():
        match = CHANNEL_FILE.fullmatch(stem)
        if match:
            groups.setdefault(match["case"], {})[int(match["channel"])] = path
        else:
            problems.append(Problem(stem, path, "has no channel number: nnU-Net images are named CASE_0000.nii.gz"))
    counts = Counter(len(group) for group in groups.values())
    expected = len(declaration.channels) or max(counts, key=lambda count: (counts[count], count), default=1)
    complete = {}
    for name, group in groups.items():
        if sorted(group) == list(range(expected)):
            complete[name] = tuple(group[channel] for channel in range(expected))
        else:
            found = ", ".join(f"{channel:04d}" for channel in sorted(group))
            text = f"belongs to a case with channels {found}; expected 0000 to {expected - 1:04d}"
            problems.append(Problem(name, next(iter(group.values())), text))
    return complete


def _dataset_of(root: Path, layout: Layout, cases: list[Case], declaration: Declaration) -> Dataset:
    channels = declaration.channels
    if not channels:
        # Most cases are right: the odd one is then named, wherever it is in the list.
        counts = Counter(_channels_of(case) for case in cases)
        usual = max(counts, key=lambda count: (counts[count], -count), default=1)
        channels = tuple(f"channel_{index}" for index in range(usual))
    return Dataset(root, layout, tuple(sorted(cases, key=lambda case: case.name)), channels, declaration.labels)


def _channels_of(case: Case) -> int:
    if len(case.images) > 1 or case.series is not None:
        return len(case.images)
    try:
        return channel_count(case.images[0])
    except DataError:
        return 1  # reading the case reports the problem
