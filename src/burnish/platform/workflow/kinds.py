"""Every kind that runs in the server, by name."""

from collections.abc import Mapping

from burnish.platform.workflow.engine_kinds import BASIC_KINDS, EngineKind
from burnish.platform.workflow.gate_kind import GATE
from burnish.platform.workflow.registry_kinds import REGISTRY_KINDS

ENGINE_KINDS: Mapping[str, EngineKind] = {**BASIC_KINDS, **REGISTRY_KINDS, "gate": GATE}
