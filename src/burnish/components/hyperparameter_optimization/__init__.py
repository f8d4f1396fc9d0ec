"""Hyperparameter optimization: studies, trials, samplers, pruners.

Invariants: a trial is a job; a study is an execution that holds no resources itself.
"""
