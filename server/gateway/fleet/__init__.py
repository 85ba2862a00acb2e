"""The Flower calls that sites may make: checked, and relayed to SuperLink."""
