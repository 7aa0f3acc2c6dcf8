"""What ``dp_step.py`` measures: networks, and ways of making one private step."""
