"""The commands of the command line, one per module: each parses, calls and prints."""
