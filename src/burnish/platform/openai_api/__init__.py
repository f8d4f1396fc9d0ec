"""``/v1``: OpenAI's API as a face over the serving component.

Invariant: every answer, errors of the platform included, is one that the official ``openai`` client understands.
"""

from burnish.platform.openai_api.app import OpenAIFace
from burnish.platform.openai_api.openapi import document

__all__ = ["OpenAIFace", "document"]
