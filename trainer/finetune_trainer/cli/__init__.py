"""The command line: run, plan and generate."""
