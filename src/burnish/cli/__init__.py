"""The command line: a thin face over :mod:`burnish.client`, and ``serve``, which starts a server.

Invariants: modules of commands import only typer and the standard library at the top, and what talks to a server inside
the commands, so that ``burnish --help`` and completion answer at once; answers go to stdout, everything else to stderr;
``--json`` prints one JSON value (with ``--follow`` one a line) and nothing else on stdout.
Exit status: 0 done, 1 failed, 2 wrong usage, 3 no server reachable, 4 the workflow failed, 5 the gate rejected.
"""
