"""From a finished run to a model that others can use, with its validation scores."""
