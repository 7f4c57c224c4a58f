"""The command line: one file per command. Commands fetch heavy libraries only when they run."""
