"""How much of everything some rates of callbacks need, and what the autoscaler does then."""
