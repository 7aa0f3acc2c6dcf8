"""What ``privacy_utility.py`` runs: settings by data set, unit and epsilon, and whole runs."""
