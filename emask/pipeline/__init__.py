"""Photos in, result objects out: no printing, no command-line parsing."""
