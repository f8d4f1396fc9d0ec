"""How the threads of numeric libraries (OpenMP: torch, llama.cpp) share cores with other processes.

Between two operations OpenMP's threads wait for each other, some 300 times a token. Threads that spin for long take the
core from the thread they wait for as soon as another process is busy: llama.cpp falls to a tenth of its speed. Threads
that sleep at once (``OMP_WAIT_POLICY=PASSIVE``) never do, but lose two thirds of their speed on a quiet machine to
waking each other. A short spin keeps both: measured on 2 cores with SmolLM2-135M (q8_0), in tokens/s at 1 and 8 streams,

========================  ==========  ==============  ===============
spin count (libgomp)      quiet       1 busy process  2 busy processes
========================  ==========  ==============  ===============
its default, 300,000      150 / 370   35 / 105        25 / 70
10,000                    130 / 360   16 / 56         37 / 165
1,000                     140 / 370   38 / 135        60 / 165
**500**                   142 / 355   52 / 162        64 / 150
0 (passive)               48 / 196    84 / 183        37 / 97
========================  ==========  ==============  ===============
"""

SPIN_COUNT = 500


def thread_environment(threads: int) -> dict[str, str]:
    """Return environment variables for a process with so many numeric threads.

    They must be set before the process loads an OpenMP runtime. ``OMP_WAIT_POLICY`` speaks to runtimes other than
    libgomp, where ``GOMP_SPINCOUNT`` outranks it.
    """
    count = str(max(1, threads))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**dict.fromkeys(names, count), "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": str(SPIN_COUNT)}
