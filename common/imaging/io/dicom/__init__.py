"""Reading DICOM: from any mix of files to series, and from a series to a volume, or the reason why not.

Only what is unambiguous is read. Nothing outside this room imports pydicom, and those who import this room do it late:
sites with NIfTI files wait for neither.
"""
