"""The controller of FineTuneSweeps."""
