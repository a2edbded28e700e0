"""What people look at, said once: panels and alerts with their reasons, and the dashboards, rules and pages written from them."""
