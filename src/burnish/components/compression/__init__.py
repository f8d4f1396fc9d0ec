"""The compression component: makes models smaller by methods, and says what it cost and gained.

Torch-free: methods name the functions of ``burnish.ml`` by string, which only a host process resolves.
"""
