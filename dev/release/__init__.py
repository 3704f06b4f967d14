"""What a release consists of: checks of the version, notes, and the chart and manifest with released images."""
