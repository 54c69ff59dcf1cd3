"""Many artifacts of one source: recipes, what was built of them, and whether that is still what it was."""
