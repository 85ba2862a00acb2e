"""The Flower calls that a site may make, checked and relayed to SuperLink."""
