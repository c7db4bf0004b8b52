"""Public archives: their recipes, windows cut from them over the web, their published files."""
