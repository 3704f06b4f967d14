"""`finetune-operator`: runs until it is told to stop."""

from __future__ import annotations

import logging
import sys

import kopf
from pydantic import ValidationError
from pydantic_settings import SettingsError

from finetune_operator.manager import Manager
from finetune_operator.settings import Settings
from finetune_operator.telemetry import logs

log = logging.getLogger("finetune_operator")


def main() -> None:
    """Run the operator with the settings of the environment."""
    try:
        settings = Settings()
    except (SettingsError, ValidationError) as error:
        sys.exit(f"FINETUNE_OPERATOR_…: {error}")
    logs.configure_logging(settings.log_level, settings.log_format)
    try:
        kopf.run(**Manager(settings).build_kopf_arguments())
    except Exception:  # a log line like all others
        log.exception("the operator has ended")
        sys.exit(1)


if __name__ == "__main__":
    main()
