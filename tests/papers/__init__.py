"""Documentation, manifests and the rules of the house."""
