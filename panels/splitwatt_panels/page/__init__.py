"""The dashboards as one page in a browser, for houses without Grafana: the same panels, straight from Prometheus."""
