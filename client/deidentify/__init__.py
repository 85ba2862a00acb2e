"""De-identifying DICOM files on arrival: what is not known to be harmless does not reach the dataset.

The rules are those of the Basic Application Level Confidentiality Profile (DICOM PS3.15, Annex E), kept by a positive
list. No network and no commands here. Its modules import pydicom, so whoever imports them does it late.
"""
