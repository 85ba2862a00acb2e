"""Files, devices and processes of the machine, independent of federations."""
