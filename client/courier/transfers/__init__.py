"""Models down and updates up, in windows, resumed where they broke off."""
