"""The server process of a federation: SuperLink, gateway and ServerApp in one process."""
