"""The panels of the dashboard, drawn without Grafana."""
