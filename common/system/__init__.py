"""Files, devices and processes of the machine. Nothing here knows of federations."""
