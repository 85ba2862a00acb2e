"""Reading DICOM: from any mix of files to series, and from a series to a volume, or the reason why not.

Only what is unambiguous is read. Nothing outside this room imports pydicom's decoders, and those who import this room
do it late, for pydicom takes its time (nibabel imports it by itself).
"""
