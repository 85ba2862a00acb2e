"""A DICOM node for routine: studies come in, are segmented, and their results go out, each exactly once."""
