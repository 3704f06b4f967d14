"""One module for each command. They import the client inside functions, so that `--help` needs 0.3 s."""
