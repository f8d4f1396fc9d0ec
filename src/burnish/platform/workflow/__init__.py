"""Executions of workflow definitions: DAGs of steps that components (or the server itself) do.

Invariants: an execution is accepted once its row is committed; its ``steps`` are authoritative; an attempt is a
committed row before anything is submitted, under a job id that only it has; an outcome is recorded before a cancel or a
pause is looked at; a gate that does not pass ends the execution as ``rejected``, and nothing after it runs.
"""
