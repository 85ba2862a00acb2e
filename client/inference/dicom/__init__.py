"""DICOM results: what a model found in a series, as a DICOM-SEG and a structured report that refer to the series.

Importing pydicom and highdicom takes long: import this room late.
"""
