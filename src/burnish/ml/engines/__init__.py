"""Engine processes: each serves one model with HTTP in OpenAI's form on a unix socket.

Started as ``python -m burnish.ml.engines.<engine> CONFIG.json`` with an ``EngineConfig``. Invariants: a load that fails
says why in the last line of stderr and exits with 1; SIGTERM ends the process at once (drain before); no core files;
equal requests, one at a time, get equal answers whatever was asked before.
"""
