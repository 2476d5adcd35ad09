"""The panels of the Grafana dashboard, as a picture."""
