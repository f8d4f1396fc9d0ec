"""The program that quantizes one GGUF file: ``python -m burnish.ml.gguf_quantizer SOURCE TARGET TYPE THREADS``.

A process of its own, because llama.cpp aborts on what it does not like, and logs by the thousand lines.
"""

import sys

FILE_TYPES = {"q4_0": 2, "q8_0": 7, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18, "iq4_nl": 25}
"""llama.cpp's ``llama_ftype`` numbers of the quantizations that are offered."""


def main(source: str, target: str, name: str, threads: str) -> None:
    """Quantize ``source`` into ``target``."""
    from cyllama.llama import llama_cpp

    llama_cpp.llama_backend_init()
    params = llama_cpp.LlamaModelQuantizeParams()
    params.ftype = FILE_TYPES[name]
    params.nthread = int(threads)
    llama_cpp.model_quantize(source, target, params)


if __name__ == "__main__":
    main(*sys.argv[1:5])
