"""`finetune-operator`: runs until it is told to stop."""

from __future__ import annotations

import logging
import sys

import kopf
from pydantic import ValidationError
from pydantic_settings import SettingsError

from finetune_operator.handlers import Operator
from finetune_operator.settings import Settings


def main() -> None:
    """Run the operator with the settings of the environment."""
    try:
        settings = Settings()
    except (SettingsError, ValidationError) as error:
        sys.exit(f"FINETUNE_OPERATOR_…: {error}")
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)  # a line for every event of every object
    kopf.run(
        registry=Operator(settings).registry(),
        clusterwide=not settings.watch_namespaces,
        namespaces=settings.watch_namespaces,
        liveness_endpoint=settings.liveness_endpoint or None,
        standalone=True,
    )


if __name__ == "__main__":
    main()
