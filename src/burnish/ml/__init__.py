"""Torch land: models, text, training, usable without a server.

Nothing imports this package: job kinds name its functions by string, and only a host process resolves the name.
Every job function is ``run(spec, context) -> result`` and touches the world through its context alone.
Models come as safetensors or GGUF; pickles are never read, and code that ships with a model is never run.
"""
