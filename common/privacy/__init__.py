"""What differential privacy costs: accounting and calibration. Nothing here adds noise."""
