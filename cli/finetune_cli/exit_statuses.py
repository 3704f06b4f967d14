"""Exit statuses of all commands."""

from __future__ import annotations

EXIT_FAILURE = 1
"""Exit status of a run that has failed, and of every error."""
EXIT_USAGE = 2
"""Exit status of wrong arguments and invalid manifests."""
EXIT_CANCELLED = 3
"""Exit status of a run that was cancelled."""
EXIT_SUSPENDED = 4
"""Exit status of a run that was suspended."""
EXIT_TIMEOUT = 5
"""Exit status of a run that has not ended within `--timeout`."""
EXIT_INTERRUPTED = 130
"""Exit status after Ctrl-C."""

EXIT_STATUSES = {
    0: "The command has done what it was asked for. With `--wait` and for `watch`: the run is `Complete`.",
    EXIT_FAILURE: "An error; one line on stderr says which. With `--wait` and for `watch`: the run is `Failed`.",
    EXIT_USAGE: "Wrong arguments, or an invalid manifest.",
    EXIT_CANCELLED: "The run is `Cancelled` (`submit --wait`, `watch`).",
    EXIT_SUSPENDED: "The run is `Suspended` (`submit --wait`, `watch`).",
    EXIT_TIMEOUT: "The run has not ended within `--timeout` (`submit --wait`, `watch`). It continues in the cluster.",
    EXIT_INTERRUPTED: "Ctrl-C. A run continues in the cluster.",
}
"""What each exit status means, for the reference."""
