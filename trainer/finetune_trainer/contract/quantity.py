"""Quantities of Kubernetes, such as the size of the scratch volume.

See https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import StringConstraints

QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi|E|Ei)?$"
Quantity = Annotated[str, StringConstraints(pattern=QUANTITY_PATTERN, max_length=32)]
_UNITS = {"m": Decimal("0.001")} | {
    f"{prefix}{suffix}": Decimal(base**power)
    for suffix, base in (("", 1000), ("i", 1024))
    for power, prefix in enumerate(("k" if base == 1000 else "K", "M", "G", "T", "P", "E"), 1)
}


def parse_quantity(quantity: Quantity) -> Decimal:
    """Return the value of a quantity, such as 53687091200 for `50Gi`."""
    number = quantity.rstrip("mkKMGTPEi")
    return Decimal(number) * _UNITS.get(quantity.removeprefix(number), Decimal(1))
