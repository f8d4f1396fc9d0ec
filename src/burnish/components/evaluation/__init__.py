"""The evaluation component: measures models as they will be served, with intervals and per-example results.

Torch-free: tasks name the functions of ``burnish.ml`` by string, which only a host process resolves.
"""
