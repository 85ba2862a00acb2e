"""Label maps from DICOM: segmentation objects and structure sets, placed on the grid of the series that they refer to.

Objects are matched to series by the instances that they refer to, their segments to labels by code or name, and
frames and contours to voxels by position. What is not certain is refused.
"""
