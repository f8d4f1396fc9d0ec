"""Every kind that runs in the server, by name."""

from collections.abc import Mapping

from burnish.platform.workflow.engine_kinds import BASIC_KINDS, EngineKind

ENGINE_KINDS: Mapping[str, EngineKind] = {**BASIC_KINDS}
