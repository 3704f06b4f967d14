"""The environment of the templates of all pages: everything is escaped, and missing values are errors."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from finetune_trainer import formatting, text
from finetune_trainer.reporting.formatting import (
    display_name,
    format_energy,
    format_estimate,
    format_interval,
    format_p_value,
)


@cache
def create_environment() -> Environment:
    """Return the environment, which is created once."""
    environment = Environment(
        loader=PackageLoader("finetune_trainer.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "estimate": format_estimate,
        "energy": format_energy,
        "interval": format_interval,
        "measure_name": display_name,
        "number": formatting.format_number,
        "one_line": text.to_one_line,
        "p_value": format_p_value,
        "plural": formatting.pluralize,
        "part": lambda count, row: round(count / (sum(row) or 1), 2),
        "share": formatting.format_share,
        "shown": text.shorten,
        "signed": formatting.format_signed,
        "size": formatting.format_bytes,
        "visible": text.escape_invisible,
    }
    return environment
