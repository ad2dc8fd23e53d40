"""Real clients against a real server: `nox -s tests_clients`, and docs/clients.md."""
