"""The network families by name, and networks built from what a model card keeps.

A further family is one file beside this one, with its configuration and its network, and one line in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, SerializeAsAny, ValidationError

from bluesky_ptychonn.recon.networks.base import FamilyConfig, ObjectNetwork
from bluesky_ptychonn.recon.networks.direct import PtychoNN
from bluesky_ptychonn.recon.networks.lifted import LiftedNetwork

#: Every family's network, by the name that configurations and model cards have for it.
FAMILIES: dict[str, type[ObjectNetwork]] = {
    "direct": PtychoNN,
    "lifted": LiftedNetwork,
}


def family_class(name: Any) -> type[ObjectNetwork]:
    """Return a family's network by name; ValueError, naming the known ones, for any other."""
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(f"family: got {name!r}; allowed are {', '.join(FAMILIES)}")
    return FAMILIES[name]


def network_config(values: Mapping[str, Any] | FamilyConfig) -> FamilyConfig:
    """Read the configuration that a model card keeps.

    Raises
    ------
    ValueError
        When it names an unknown family or a value out of range.
    """
    if isinstance(values, FamilyConfig):
        return values
    try:
        return family_class(values.get("family")).config_class.model_validate(dict(values))
    except ValidationError as error:
        family = values.get("family")
        wrong = "; ".join(
            f"{'.'.join(map(str, (family, *e['loc'])))}: got {e.get('input')!r}, {e['msg']}" for e in error.errors()
        )
        raise ValueError(f"network configuration is not usable: {wrong}") from None


#: A field of a configuration that holds any family's.
NetworkConfig = Annotated[SerializeAsAny[FamilyConfig], BeforeValidator(network_config)]


def build_network(config: FamilyConfig | Mapping[str, Any]) -> ObjectNetwork:
    """Build a network from its configuration, or from the mapping a model card keeps.

    Raises
    ------
    ValueError
        When the mapping names an unknown family or a value out of range.
    """
    config = network_config(config)
    network = FAMILIES[config.family](config)
    # Parameters in channels-last order are 1.1 to 1.6 times as fast on a CPU (design.md). Typeshed lacks the keyword.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network
