"""Entry point of `finetune-operator`: read the settings, configure logging, run the manager."""

from __future__ import annotations

import gc
import logging
import sys

from pydantic import ValidationError
from pydantic_settings import SettingsError

from finetune_operator.manager import Manager
from finetune_operator.policy.profiles import ProfilesError
from finetune_operator.settings import Settings
from finetune_operator.telemetry import logs

log = logging.getLogger("finetune_operator")


def main() -> None:
    """Run the operator until SIGTERM, with settings from environment variables."""
    try:
        settings = Settings()
    except (SettingsError, ValidationError) as error:
        sys.exit(f"FINETUNE_OPERATOR_…: {error}")
    logs.configure_logging(settings.log_level, settings.log_format)
    gc.freeze()  # imported modules are never garbage, so no collection has to visit them
    try:
        Manager(settings).run()
    except ProfilesError as error:
        sys.exit(str(error))
    except Exception:  # logged in the configured format
        log.exception("the operator failed")
        sys.exit(1)


if __name__ == "__main__":
    main()
