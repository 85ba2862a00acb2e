"""Reading DICOM: from any mix of files to series, and from a series to a volume, or the reason why not.

Only what is unambiguous is read. Nothing outside this room imports pydicom or its decoders, and those who import this
room do it late, for both take their time (nibabel imports pydicom by itself).
"""
