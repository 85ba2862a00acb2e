"""From a federation file and its data to the plan that all sites share."""
