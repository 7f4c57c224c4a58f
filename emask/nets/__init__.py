"""Network definitions: torch modules only, no files, no losses."""
