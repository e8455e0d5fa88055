"""Reports of a finished study, made from its folder alone: figures, results table and HTML page."""
