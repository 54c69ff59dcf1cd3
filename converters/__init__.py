"""From a checkpoint to an artifact: plan, execute, and one recipe per format."""
