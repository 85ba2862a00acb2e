"""Speaking DICOM with other systems: what calls a PACS, and what is called by one."""
