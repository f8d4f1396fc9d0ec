"""The vocabulary of Burnish. Standard library and pydantic only; imports nothing else of Burnish.

Invariants: models here are frozen and cross process boundaries as JSON; every state change is legal by
``states``; every expected failure is a ``BurnishError``.
"""
