"""Where hosts run. ``protocol`` says what a backend promises; ``local`` runs subprocesses of this machine."""
