"""The fine-tuning component: brings base models in, and trains them by recipes.

Torch-free: kinds and recipes name the functions of ``burnish.ml`` by string, which only a host process resolves.
"""
